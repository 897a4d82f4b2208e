package scenarios

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/batch"
	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/worker"
)

// messagesOf is the body of a call that makes a batch of n messages, whose answers have that many tokens.
func messagesOf(n, tokens int) string {
	var requests []string
	for i := range n {
		requests = append(requests, fmt.Sprintf(`{"custom_id":"c%d","params":{"model":"m","max_tokens":%d,"messages":[{"role":"user","content":"question %d"}]}}`, i, tokens, i))
	}
	return `{"requests":[` + strings.Join(requests, ",\n") + `]}`
}

func submitMessages(t testing.TB, g *Gateway, body string, header ...string) string {
	t.Helper()
	return member(t, do(t, g, "POST", "/v1/messages/batches", body, header...), "id")
}

// messagesState is a batch as Anthropic's API shows it.
type messagesState struct {
	ID, Type  string
	Status    string                                                          `json:"processing_status"`
	Counts    struct{ Processing, Succeeded, Errored, Canceled, Expired int } `json:"request_counts"`
	Created   time.Time                                                       `json:"created_at"`
	Expires   time.Time                                                       `json:"expires_at"`
	Ended     *time.Time                                                      `json:"ended_at"`
	Cancelled *time.Time                                                      `json:"cancel_initiated_at"`
	Archived  *time.Time                                                      `json:"archived_at"`
	URL       *string                                                         `json:"results_url"`
	Progress  struct{ Completed int }
}

func messagesAt(t testing.TB, g *Gateway, id string, header ...string) (b messagesState) {
	t.Helper()
	r := do(t, g, "GET", "/v1/messages/batches/"+id, "", header...)
	if err := json.Unmarshal([]byte(r.body), &b); err != nil || r.status != 200 {
		t.Fatalf("%d %s %v", r.status, r.body, r.err)
	}
	return b
}

func endOfMessages(t testing.TB, g *Gateway, id string, within time.Duration, header ...string) (b messagesState) {
	t.Helper()
	waitFor(t, "the batch has ended", within, func() bool {
		b = messagesAt(t, g, id, header...)
		return b.Status == "ended"
	})
	return b
}

// waitFor is testenv.Eventually for what takes long.
func waitFor(t testing.TB, what string, within time.Duration, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !holds(); time.Sleep(250 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, within)
		}
	}
}

// messageResults are the results of a batch by custom_id: the text of the answer, or the type of the result.
func messageResults(t testing.TB, g *Gateway, id string, header ...string) map[string]string {
	t.Helper()
	got := make(map[string]string)
	r := do(t, g, "GET", "/v1/messages/batches/"+id+"/results", "", header...)
	if r.status != 200 {
		t.Fatalf("%d %s %v", r.status, r.body, r.err)
	}
	for text := range strings.Lines(r.body) {
		var l struct {
			CustomID string `json:"custom_id"`
			Result   struct {
				Type    string
				Message struct{ Content []struct{ Text string } }
				Error   struct {
					Type  string
					Error struct{ Type, Message string }
				}
			}
		}
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if _, twice := got[l.CustomID]; twice {
			t.Errorf("two results of %s", l.CustomID)
		}
		switch got[l.CustomID] = l.Result.Type; l.Result.Type {
		case "succeeded":
			got[l.CustomID] = l.Result.Message.Content[0].Text
		case "errored":
			if l.Result.Error.Type != "error" || l.Result.Error.Error.Message == "" {
				t.Errorf("error of %s: %s", l.CustomID, text)
			}
			got[l.CustomID] += " " + l.Result.Error.Error.Type
		}
	}
	return got
}

// A batch of messages runs from one call to its results, and is deleted with all that is stored of it.
func TestMessageBatch(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.BatchGateway(batch.Config{})
		env.Worker(env.Engine(slow("a")), worker.Config{Name: "a", Slots: 4})
		g.Serves(t, "m")
		bad := `{"custom_id":"bad","params":{"model":"none","max_tokens":1,"messages":[]}}`
		id := submitMessages(t, g, strings.TrimSuffix(messagesOf(20, 3), "]}")+","+bad+"]}")
		b := messagesAt(t, g, id)
		if b.Type != "message_batch" || b.Status != "in_progress" || b.Counts.Processing != 21 || b.Ended != nil || b.URL != nil || b.Expires.Sub(b.Created) != 24*time.Hour {
			t.Errorf("at first %+v", b)
		}
		for path, method := range map[string]string{"/results": "GET", "": "DELETE"} {
			if r := do(t, g, method, "/v1/messages/batches/"+id+path, ""); r.status != 400 || !strings.Contains(r.body, "has not ended") {
				t.Errorf("%s %s before the end: %d %s", method, path, r.status, r.body)
			}
		}
		b = endOfMessages(t, g, id, time.Minute)
		if c := b.Counts; c.Succeeded != 20 || c.Errored != 1 || c.Processing+c.Canceled+c.Expired != 0 || b.Ended == nil || b.Cancelled != nil {
			t.Errorf("%+v", b)
		}
		if b.URL == nil || *b.URL != "http://gateway/v1/messages/batches/"+id+"/results" {
			t.Errorf("results_url %v", b.URL)
		}
		got := messageResults(t, g, id)
		if got["bad"] != "errored not_found_error" {
			t.Errorf("bad: %s", got["bad"])
		}
		delete(got, "bad")
		rightAnswers(t, got, 20, 3)
		if r := do(t, g, "POST", "/v1/messages/batches/"+id+"/cancel", ""); r.status != 400 || !strings.Contains(r.body, `"type":"invalid_request_error"`) {
			t.Errorf("cancel of a batch that has ended: %d %s", r.status, r.body)
		}
		for _, path := range []string{"/v1/files", "/v1/batches"} {
			if r := do(t, g, "GET", path, ""); strings.Contains(r.body, `"id"`) {
				t.Errorf("%s shows it: %s", path, r.body)
			}
		}
		if r := do(t, g, "GET", "/v1/batches/"+id, ""); r.status != 404 {
			t.Errorf("as a batch of the other API: %d", r.status)
		}
		waitFor(t, "only the results are stored", 10*time.Second, func() bool {
			return stored(t, env, subjects.FilesStream) == 1 && stored(t, env, subjects.ResultsStream) == 0
		})
		if r := do(t, g, "DELETE", "/v1/messages/batches/"+id, ""); r.body != `{"id":"`+id+`","type":"message_batch_deleted"}` {
			t.Errorf("%d %s", r.status, r.body)
		}
		if n := stored(t, env, subjects.FilesStream); n != 0 {
			t.Errorf("%d pieces are left", n)
		}
		for _, path := range []string{"", "/results"} {
			if r := do(t, g, "GET", "/v1/messages/batches/"+id+path, ""); r.status != 404 || !strings.Contains(r.body, `"type":"not_found_error"`) {
				t.Errorf("%s of a batch that was deleted: %d %s", path, r.status, r.body)
			}
		}
	})
}

// stored is how many messages a stream has.
func stored(t testing.TB, env *Env, stream string) uint64 {
	t.Helper()
	s, err := env.JetStream().Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().State.Msgs
}

// Calls that cannot be are refused in the API's form, before anything is stored.
func TestMessageBatchCallsAreChecked(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.BatchGateway(batch.Config{MaxLines: 3, MaxFile: 2000})
		one := messagesOf(1, 1)
		for what, c := range map[string]struct {
			body   string
			status int
			want   string // in the message
		}{
			"nothing":              {"", 400, "not valid JSON"},
			"cut off":              {one[:len(one)-1], 400, "not valid JSON"},
			"no object":            {"[]", 400, "must be a JSON object"},
			"more data":            {one + "{}", 400, "data after"},
			"no requests":          {`{}`, 400, "requests: field required"},
			"requests is a number": {`{"requests":3}`, 400, "requests: must be an array"},
			"empty":                {`{"requests":[]}`, 400, "at least one"},
			"twice":                {one[:len(one)-1] + "," + one[1:], 400, "not valid JSON"},
			"a request is a text":  {`{"requests":["x"]}`, 400, "requests.0: must be an object"},
			"no custom_id":         {strings.Replace(one, "custom_id", "id", 1), 400, "requests.0.custom_id: field required"},
			"custom_id with dots":  {strings.Replace(one, "c0", "c.0", 1), 400, "requests.0.custom_id: must match"},
			"long custom_id":       {strings.Replace(one, "c0", strings.Repeat("x", 65), 1), 400, "requests.0.custom_id: must match"},
			"two of one id":        {strings.Replace(messagesOf(2, 1), "c1", "c0", 1), 400, "requests.1.custom_id: c0 is that of an earlier"},
			"no params":            {strings.Replace(one, "params", "param", 1), 400, "requests.0.params: field required"},
			"params is a text":     {`{"requests":[{"custom_id":"a","params":"x"}]}`, 400, "requests.0.params: must be an object"},
			"a stream":             {strings.Replace(one, `"model"`, `"stream":true,"model"`, 1), 400, "requests.0.params.stream: "},
			"no tokens":            {messagesOf(1, 0), 400, "requests.0.params.max_tokens: "},
			"not UTF-8":            {strings.Replace(one, "question", "\xff", 1), 400, "not valid JSON"},
			"too many":             {messagesOf(4, 1), 400, "requests: more than 3"},
			"too large":            {strings.Replace(one, "question", strings.Repeat("x", 2000), 1), 413, "larger than 2000"},
		} {
			r := do(t, g, "POST", "/v1/messages/batches", c.body)
			var e struct {
				Type  string
				Error struct{ Type, Message string }
			}
			kind := map[int]string{400: "invalid_request_error", 413: "request_too_large"}[c.status]
			if err := json.Unmarshal([]byte(r.body), &e); err != nil || r.status != c.status || e.Type != "error" || e.Error.Type != kind || !strings.Contains(e.Error.Message, c.want) {
				t.Errorf("%s: %d %s, want %d %s", what, r.status, r.body, c.status, c.want)
			}
		}
		for _, c := range []struct {
			method, path string
			status       int
		}{
			{"GET", "/none", 404}, {"GET", "/*", 404}, {"GET", "/none/results", 404}, {"POST", "/none/cancel", 404}, {"DELETE", "/none", 404},
			{"PUT", "/none", 405}, {"DELETE", "", 405}, {"GET", "/none/lines", 404}, {"GET", "?limit=1001", 400}, {"GET", "?after_id=a&before_id=b", 400},
		} {
			if r := do(t, g, c.method, "/v1/messages/batches"+c.path, ""); r.status != c.status || !strings.HasPrefix(r.body, `{"error":{"message":"`) || !strings.Contains(r.body, `"type":"error"`) {
				t.Errorf("%s %s: %d %s", c.method, c.path, r.status, r.body)
			}
		}
		if n := stored(t, env, subjects.FilesStream); n != 0 {
			t.Errorf("%d pieces are stored", n)
		}
	})
}

// A batch of messages whose gateway dies is taken over: each request has one result, and the right one.
func TestMessageBatchSurvivesDeaths(t *testing.T) {
	const lines, tokens = 120, 5
	for what, kill := range map[string]func(env *Env, g *Gateway){
		"its gateway": func(env *Env, g *Gateway) { g.Link.Cut(true) },
		"its gateway and the broker": func(env *Env, g *Gateway) {
			g.Link.Cut(true)
			env.StopBroker()
			env.StartBroker()
		},
	} {
		t.Run(what, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g1 := env.BatchGateway(batch.Config{})
				e := sim.Config{Name: "a", Models: []string{"m"}, Slots: 4, PrefillRate: 1000, ITLBase: 50 * time.Millisecond}
				env.Worker(env.Engine(e), worker.Config{Name: "a", Slots: 4})
				g1.Serves(t, "m")
				id := submitMessages(t, g1, messagesOf(lines, tokens))
				g2 := env.BatchGateway(batch.Config{})
				waitFor(t, "a part is answered", time.Minute, func() bool { return messagesAt(t, g2, id).Progress.Completed > 20 })
				if b := messagesAt(t, g2, id); b.Counts.Processing != lines || b.Counts.Succeeded != 0 {
					t.Errorf("in the middle %+v", b)
				}
				kill(env, g1)
				time.Sleep(3 * time.Second)
				b := endOfMessages(t, g2, id, 5*time.Minute)
				if b.Counts.Succeeded != lines || b.Counts.Errored+b.Counts.Canceled+b.Counts.Expired != 0 {
					t.Errorf("%+v", b)
				}
				rightAnswers(t, messageResults(t, g2, id), lines, tokens)
			})
		})
	}
}

// A batch of messages that is canceled keeps what was answered, and says of the other requests that they are canceled.
func TestMessageBatchIsCanceled(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.BatchGateway(batch.Config{})
		e := env.Engine(slow("a"))
		env.Worker(e, worker.Config{Name: "a", Slots: 4})
		g.Serves(t, "m")
		id := submitMessages(t, g, messagesOf(100, 10))
		waitFor(t, "a part is answered", time.Minute, func() bool { return messagesAt(t, g, id).Progress.Completed > 10 })
		for i := range 2 { // the batch may have ended before the second call
			r := do(t, g, "POST", "/v1/messages/batches/"+id+"/cancel", "")
			if status := member(t, r, "processing_status"); status != "canceling" && (i == 0 || status != "ended") || member(t, r, "cancel_initiated_at") == "" {
				t.Errorf("%d %s", r.status, r.body)
			}
		}
		b := endOfMessages(t, g, id, time.Minute)
		count := map[string]int{}
		for _, r := range messageResults(t, g, id) {
			if r != "canceled" {
				r = "answered"
			}
			count[r]++
		}
		want := map[string]int{"answered": b.Counts.Succeeded, "canceled": b.Counts.Canceled}
		if !maps.Equal(count, want) || b.Counts.Canceled < 50 || b.Counts.Canceled+b.Counts.Succeeded != 100 || b.Counts.Processing+b.Counts.Errored+b.Counts.Expired != 0 {
			t.Errorf("%v, want %v: %+v", count, want, b)
		}
		idle(t, e, time.Second)
	})
}

// Tenants do not see each other's batches of messages. Lists come in pages, both ways.
func TestMessageBatchTenantsAndPages(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.BatchGateway(batch.Config{})
		env.Worker(env.Engine(slow("a")), worker.Config{Name: "a", Slots: 4})
		g.Serves(t, "m")
		acme, other := env.AddKey("acme"), env.AddKey("other.*")
		if r := do(t, g, "POST", "/v1/messages/batches", messagesOf(1, 1)); r.status != 401 || !strings.Contains(r.body, "authentication_error") {
			t.Errorf("without a key: %d %s", r.status, r.body)
		}
		var ids []string
		for range 5 {
			ids = append(ids, submitMessages(t, g, messagesOf(2, 1), "X-Api-Key", acme))
			time.Sleep(time.Second)
		}
		endOfMessages(t, g, ids[4], time.Minute, "X-Api-Key", acme)
		for _, c := range [][2]string{{"GET", ""}, {"GET", "/results"}, {"POST", "/cancel"}, {"DELETE", ""}} {
			if r := do(t, g, c[0], "/v1/messages/batches/"+ids[0]+c[1], "", "X-Api-Key", other); r.status != 404 {
				t.Errorf("%s %s of another tenant: %d %s", c[0], c[1], r.status, r.body)
			}
		}
		if r := do(t, g, "GET", "/v1/messages/batches", "", "X-Api-Key", other); r.body != `{"data":[],"has_more":false,"first_id":null,"last_id":null}` {
			t.Errorf("list of another tenant: %s", r.body)
		}
		read := func(query string) (got []string, more bool) {
			var l struct {
				Data  []messagesState
				More  bool   `json:"has_more"`
				First string `json:"first_id"`
				Last  string `json:"last_id"`
			}
			r := do(t, g, "GET", "/v1/messages/batches?limit=2"+query, "", "X-Api-Key", acme)
			if err := json.Unmarshal([]byte(r.body), &l); err != nil || len(l.Data) == 0 {
				t.Fatalf("%s: %s", query, r.body)
			}
			for _, b := range l.Data {
				got = append(got, b.ID)
			}
			if l.First != got[0] || l.Last != got[len(got)-1] {
				t.Errorf("%s: %s", query, r.body)
			}
			return got, l.More
		}
		slices.Reverse(ids) // the latest first
		for query, c := range map[string]struct {
			want []string
			more bool
		}{
			"":                     {ids[:2], true},
			"&after_id=" + ids[1]:  {ids[2:4], true},
			"&after_id=" + ids[3]:  {ids[4:], false},
			"&before_id=" + ids[4]: {ids[2:4], true},
			"&before_id=" + ids[2]: {ids[:2], false},
		} {
			if got, more := read(query); !slices.Equal(got, c.want) || more != c.more {
				t.Errorf("%q: %v %v, want %v %v", query, got, more, c.want, c.more)
			}
		}
	})
}

// Tokens that a tenant has in the queue are bounded, by estimate, and released as requests are answered.
func TestBatchTokenQuota(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.BatchGateway(batch.Config{TenantTokens: 3000})
		w := env.Worker(env.Engine(slow("a")), worker.Config{Name: "a", Slots: 4})
		g.Serves(t, "m")
		w.Stop()
		const each = 100 + 80/4 // of a request: its answer's limit and about 80 bytes
		key, other := env.AddKey("acme"), env.AddKey("other")
		ask := func(n int, key string) reply {
			return do(t, g, "POST", "/v1/messages/batches", messagesOf(n, 100), "X-Api-Key", key)
		}
		first := member(t, ask(20, key), "id")
		r := ask(20, key)
		if r.status != 429 || !strings.Contains(r.body, `"type":"rate_limit_error"`) || r.header.Get("X-Should-Retry") != "false" {
			t.Errorf("%d %s", r.status, r.body)
		}
		var used, asked int
		_, said, _ := strings.Cut(r.body, "longest answers; ")
		if fmt.Sscanf(said, "%d are used, and this batch asks for %d", &used, &asked); used < 20*100 || used > 20*each || asked != used || !strings.Contains(r.body, "your limit is 3000 tokens") {
			t.Errorf("%d used, %d asked: %s", used, asked, r.body)
		}
		if r := ask(20, other); r.status != 200 {
			t.Errorf("another tenant: %d %s", r.status, r.body)
		}
		b := endOf(t, g, submitBatch(t, g, inputOf(20, 100), "X-Api-Key", key), time.Minute, "X-Api-Key", key)
		if b.Status != "failed" || b.Wrong == nil || b.Wrong.Data[0].Code != "token_limit_exceeded" {
			t.Errorf("a batch of the other API: %+v", b)
		}
		env.Worker(env.Engine(slow("b")), worker.Config{Name: "b", Slots: 4})
		waitFor(t, "more than a half is answered", 5*time.Minute, func() bool { return messagesAt(t, g, first, "X-Api-Key", key).Progress.Completed > 12 })
		if messagesAt(t, g, first, "X-Api-Key", key).Status == "ended" {
			t.Fatal("the batch has ended too early for this test")
		}
		if r := ask(12, key); r.status != 200 {
			t.Errorf("tokens are not released as requests end: %d %s", r.status, r.body)
		}
	})
}
