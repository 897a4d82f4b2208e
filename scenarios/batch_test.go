package scenarios

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/batch"
	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// BatchGateway starts a gateway that serves files and batches.
func (e *Env) BatchGateway(cfg batch.Config) *Gateway {
	e.t.Helper()
	nc, link := e.Connect("gateway")
	s, err := batch.New(cfg, nc)
	if err != nil {
		e.t.Fatal(err)
	}
	g := e.gatewayAt(nc, link, gateway.Config{Services: []gateway.Service{s}})
	testenv.Eventually(e.t, "files are served", 20*time.Second, func() bool { return do(e.t, g, "GET", "/v1/files", "").status != 503 })
	return g
}

// form is a form of an upload, and its content type. The fields come in their order.
func form(content string, fields ...string) (body, contentType string) {
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for i := 0; i+1 < len(fields); i += 2 {
		w.WriteField(fields[i], fields[i+1])
	}
	f, _ := w.CreateFormFile("file", "in.jsonl")
	f.Write([]byte(content))
	w.Close()
	return b.String(), w.FormDataContentType()
}

// uploadTo uploads a batch's input, and returns the file's id.
func uploadTo(t testing.TB, g *Gateway, content string, header ...string) string {
	t.Helper()
	body, contentType := form(content, "purpose", "batch")
	return member(t, do(t, g, "POST", "/v1/files", body, append(header, "Content-Type", contentType)...), "id")
}

// member returns a text member of an answer's JSON object.
func member(t testing.TB, r reply, name string) string {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(r.body), &v); err != nil || r.status != 200 {
		t.Fatalf("%d %s %v", r.status, r.body, r.err)
	}
	s, _ := v[name].(string)
	return s
}

// submitBatch makes a batch of an input, and returns its id.
func submitBatch(t testing.TB, g *Gateway, content string, header ...string) string {
	t.Helper()
	return member(t, do(t, g, "POST", "/v1/batches", batchOf(uploadTo(t, g, content, header...), "24h"), header...), "id")
}

func batchOf(file, window string) string {
	return fmt.Sprintf(`{"input_file_id":%q,"endpoint":"/v1/chat/completions","completion_window":%q}`, file, window)
}

// batchState is a batch as the API shows it.
type batchState struct {
	Status string
	Counts struct{ Total, Completed, Failed int } `json:"request_counts"`
	Output string                                 `json:"output_file_id"`
	Errors string                                 `json:"error_file_id"`
	Wrong  *struct {
		Data []struct {
			Code  string
			Param string
			Line  int
		}
	} `json:"errors"`
	Usage struct {
		Total int `json:"total_tokens"`
	}
	Expires   int64 `json:"expires_at"`
	Completed int64 `json:"completed_at"`
	Late      int
}

func batchAt(t testing.TB, g *Gateway, id string, header ...string) (b batchState) {
	t.Helper()
	r := do(t, g, "GET", "/v1/batches/"+id, "", header...)
	if err := json.Unmarshal([]byte(r.body), &b); err != nil || r.status != 200 {
		t.Fatalf("%d %s %v", r.status, r.body, r.err)
	}
	return b
}

// endOf waits until a batch has ended.
func endOf(t testing.TB, g *Gateway, id string, within time.Duration, header ...string) (b batchState) {
	t.Helper()
	ends := time.Now().Add(within)
	for {
		b = batchAt(t, g, id, header...)
		if slices.Contains([]string{"completed", "failed", "cancelled", "expired"}, b.Status) {
			return b
		}
		if time.Now().After(ends) {
			t.Fatalf("the batch has not ended after %v: %+v", within, b)
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// results are the lines of a file by custom_id: the text of the answer, or the code of the error.
func results(t testing.TB, g *Gateway, file string, header ...string) map[string]string {
	t.Helper()
	got := make(map[string]string)
	if file == "" {
		return got
	}
	r := do(t, g, "GET", "/v1/files/"+file+"/content", "", header...)
	for text := range strings.Lines(r.body) {
		var l struct {
			CustomID string `json:"custom_id"`
			Response *struct {
				Status int `json:"status_code"`
				Body   struct {
					Choices []struct{ Message struct{ Content string } }
					Error   struct{ Code string }
				}
			}
			Error *struct{ Code string }
		}
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if _, twice := got[l.CustomID]; twice {
			t.Errorf("two results of %s", l.CustomID)
		}
		switch {
		case l.Error != nil:
			got[l.CustomID] = l.Error.Code
		case l.Response.Status == 200:
			got[l.CustomID] = l.Response.Body.Choices[0].Message.Content
		default:
			got[l.CustomID] = fmt.Sprint(l.Response.Status, " ", l.Response.Body.Error.Code)
		}
	}
	return got
}

// inputOf is a batch's input with n lines, whose answers have that many tokens.
func inputOf(n, tokens int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{"custom_id":"c%d","method":"POST","url":"/v1/chat/completions","body":{"model":"m","max_tokens":%d,"messages":[{"role":"user","content":"question %d"}]}}`+"\n", i, tokens, i)
	}
	return b.String()
}

// rightAnswers checks that each line of an inputOf has one answer, and that it is right.
func rightAnswers(t testing.TB, got map[string]string, n, tokens int) {
	t.Helper()
	if len(got) != n {
		t.Errorf("%d answers of %d lines", len(got), n)
	}
	for i := range n {
		if want := sim.Text(sim.PromptHash(fmt.Sprintf("question %d", i)), tokens); got[fmt.Sprintf("c%d", i)] != want {
			t.Fatalf("c%d: %q, want %q", i, got[fmt.Sprintf("c%d", i)], want)
		}
	}
}

// A batch runs from its upload to its results, with blank lines, a request that fails, and lines that end as Windows has them.
func TestBatch(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.BatchGateway(batch.Config{})
		env.Worker(env.Engine(slow("a")), worker.Config{Name: "a", Slots: 4})
		g.Serves(t, "m")
		bad := `{"custom_id":"bad","method":"POST","url":"/v1/chat/completions","body":{"model":"none","messages":[]}}`
		id := submitBatch(t, g, "\n"+strings.ReplaceAll(inputOf(20, 3), "\n", "\r\n")+"\n  \n"+bad)
		b := endOf(t, g, id, time.Minute)
		if b.Status != "completed" || b.Counts.Total != 21 || b.Counts.Completed != 20 || b.Counts.Failed != 1 || b.Usage.Total != 20*(2+3) {
			t.Errorf("%+v", b)
		}
		rightAnswers(t, results(t, g, b.Output), 20, 3)
		if got := results(t, g, b.Errors); len(got) != 1 || got["bad"] != "404 model_not_found" {
			t.Errorf("errors %v", got)
		}
		if r := do(t, g, "POST", "/v1/batches/"+id+"/cancel", ""); r.status != 409 {
			t.Errorf("cancel of a batch that has ended: %d %s", r.status, r.body)
		}
		if info, err := env.JetStream().Stream(t.Context(), subjects.ResultsStream); err != nil || info.CachedInfo().State.Msgs != 0 {
			t.Errorf("results are left: %v %v", info, err)
		}
		for range 2 {
			do(t, g, "DELETE", "/v1/files/"+b.Output, "")
		}
		if r := do(t, g, "GET", "/v1/files/"+b.Output+"/content", ""); r.status != 404 {
			t.Errorf("a file that was deleted: %d", r.status)
		}
	})
}

// What is wrong with an input is told for each line, and none is run.
func TestBatchInputIsChecked(t *testing.T) {
	good := `{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}`
	cases := map[string]struct {
		input string
		want  string
	}{
		"nothing":         {"\n \n", "empty_file 0"},
		"no JSON":         {good + "\n\nhello", "invalid_json_line 3"},
		"cut off":         {good[:40], "invalid_json_line 1"},
		"an array":        {"[1]", "invalid_json_line 1"},
		"two of one id":   {good + "\n" + good, "duplicate_custom_id 2"},
		"no id":           {strings.Replace(good, "custom_id", "id", 1), "missing_required_parameter 1"},
		"GET":             {strings.Replace(good, "POST", "GET", 1), "invalid_method 1"},
		"other endpoint":  {good + "\n" + strings.Replace(strings.Replace(good, "chat/completions", "embeddings", 1), `"a"`, `"b"`, 1), "mismatched_url 2"},
		"no body":         {strings.Replace(good, `"body"`, `"bod"`, 1), "missing_required_parameter 1"},
		"body is a text":  {`{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":"x"}`, "invalid_request 1"},
		"a stream":        {strings.Replace(good, `"model"`, `"stream":true,"model"`, 1), "stream_not_supported 1"},
		"in background":   {strings.Replace(good, `"model"`, `"background":true,"model"`, 1), "background_not_supported 1"},
		"byte order mark": {"\ufeff" + good + "\n\ufeff" + good, "invalid_json_line 2"},
		"not UTF-8":       {strings.Replace(good, `"a"`, "\"\xff\"", 1), "invalid_json_line 1"},
		"too many":        {inputOf(12, 1), "too_many_requests 0"},
		"several of them": {"x\n" + good + "\ny", "invalid_json_line 1,invalid_json_line 3"},
	}
	run(t, func(t *testing.T, env *Env) {
		g := env.BatchGateway(batch.Config{MaxLines: 11})
		for what, c := range cases {
			b := endOf(t, g, submitBatch(t, g, c.input), time.Minute)
			var got []string
			if b.Wrong != nil {
				for _, e := range b.Wrong.Data {
					got = append(got, fmt.Sprint(e.Code, " ", e.Line))
				}
			}
			if b.Status != "failed" || strings.Join(got, ",") != c.want {
				t.Errorf("%s: %s: %v, want %s", what, b.Status, got, c.want)
			}
		}
	})
}

// Calls that cannot be are refused in the API's form.
func TestBatchCallsAreChecked(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.BatchGateway(batch.Config{MaxFile: 10_000})
		file := uploadTo(t, g, inputOf(1, 1))
		long := strings.Repeat("x", 513)
		for _, c := range []struct {
			method, path, body string
			status             int
			param              string
		}{
			{"POST", "/v1/batches", batchOf("file-none", "24h"), 400, "input_file_id"},
			{"POST", "/v1/batches", batchOf("*", "24h"), 400, "input_file_id"},
			{"POST", "/v1/batches", batchOf(file, "25h"), 400, "completion_window"},
			{"POST", "/v1/batches", batchOf(file, ""), 400, "completion_window"},
			{"POST", "/v1/batches", strings.Replace(batchOf(file, "24h"), "chat/completions", "audio/speech", 1), 400, "endpoint"},
			{"POST", "/v1/batches", strings.Replace(batchOf(file, "24h"), "{", `{"metadata":{"a":"`+long+`"},`, 1), 400, "metadata"},
			{"POST", "/v1/batches", strings.Replace(batchOf(file, "24h"), "{", `{"output_expires_after":{"anchor":"created_at","seconds":60},`, 1), 400, "expires_after.seconds"},
			{"POST", "/v1/batches", "{", 400, ""},
			{"GET", "/v1/batches/batch_none", "", 404, ""},
			{"GET", "/v1/batches?limit=0", "", 400, "limit"},
			{"GET", "/v1/batches/a.b*>", "", 404, ""},
			{"POST", "/v1/batches/batch_none/cancel", "", 404, ""},
			{"DELETE", "/v1/batches/batch_none", "", 405, ""},
			{"GET", "/v1/batches/batch_none/lines", "", 404, ""},
			{"GET", "/v1/files/", "", 404, ""},
			{"GET", "/v1/files?limit=3x", "", 400, "limit"},
			{"GET", "/v1/files/*", "", 404, ""},
			{"GET", "/v1/files/%2A", "", 404, ""},
			{"GET", "/v1/files?order=up", "", 400, "order"},
			{"DELETE", "/v1/files/file-none", "", 404, ""},
			{"POST", "/v1/files", "{}", 400, "file"},
		} {
			r := do(t, g, c.method, c.path, c.body, "Content-Type", "application/json")
			var e struct {
				Error struct {
					Message, Type string
					Param         *string
				}
			}
			if err := json.Unmarshal([]byte(r.body), &e); err != nil || r.status != c.status || e.Error.Type != "invalid_request_error" || e.Error.Message == "" || c.param != "" && (e.Error.Param == nil || *e.Error.Param != c.param) {
				t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, r.status, r.body)
			}
		}
		for name, status := range map[string]int{strings.Repeat("n", 512): 200, strings.Repeat("n", 513): 400, "a\xff": 200} {
			body, contentType := form("x", "purpose", "batch")
			body = strings.Replace(body, "in.jsonl", name, 1)
			if r := do(t, g, "POST", "/v1/files", body, "Content-Type", contentType); r.status != status || r.took > time.Second {
				t.Errorf("file %.20q: %d after %v: %s", name, r.status, r.took, r.body)
			}
		}
		for what, c := range map[string]struct {
			content string
			fields  []string
			status  int
		}{
			"no purpose":      {"x", nil, 400},
			"other purpose":   {"x", []string{"purpose", "assistants"}, 400},
			"too large":       {strings.Repeat("x", 10_001), []string{"purpose", "batch"}, 413},
			"short expiry":    {"x", []string{"purpose", "batch", "expires_after[anchor]", "created_at", "expires_after[seconds]", "60"}, 400},
			"wrong anchor":    {"x", []string{"purpose", "batch", "expires_after[anchor]", "now", "expires_after[seconds]", "3600"}, 400},
			"as large as can": {strings.Repeat("x", 10_000), []string{"purpose", "batch"}, 200},
			"with an expiry":  {"x", []string{"purpose", "batch", "expires_after[anchor]", "created_at", "expires_after[seconds]", "3600"}, 200},
		} {
			body, contentType := form(c.content, c.fields...)
			if r := do(t, g, "POST", "/v1/files", body, "Content-Type", contentType); r.status != c.status {
				t.Errorf("upload, %s: %d %s", what, r.status, r.body)
			}
		}
	})
}

// A batch whose gateway dies is taken over, whatever else dies with it: each line has one result, and the right one.
func TestBatchSurvivesDeaths(t *testing.T) {
	const lines, tokens = 300, 5
	engine := func(name string) sim.Config {
		return sim.Config{Name: name, Models: []string{"m"}, Slots: 4, PrefillRate: 1000, ITLBase: 50 * time.Millisecond}
	}
	for what, kill := range map[string]func(t *testing.T, env *Env, g *Gateway){
		"its gateway": func(t *testing.T, env *Env, g *Gateway) { g.Link.Cut(true) },
		"its gateway, frozen for a while": func(t *testing.T, env *Env, g *Gateway) {
			g.Link.Freeze()
			time.Sleep(20 * time.Second)
			g.Link.Thaw()
		},
		"its gateway stops": func(t *testing.T, env *Env, g *Gateway) { g.Stop() },
		"the broker": func(t *testing.T, env *Env, g *Gateway) {
			env.StopBroker()
			env.StartBroker()
		},
		"its gateway and the broker": func(t *testing.T, env *Env, g *Gateway) {
			g.Link.Cut(true)
			env.StopBroker()
			env.StartBroker()
		},
	} {
		t.Run(what, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g1 := env.BatchGateway(batch.Config{})
				ea, eb := env.Engine(engine("a")), env.Engine(engine("b"))
				wa := env.Worker(ea, worker.Config{Name: "a", Slots: 4})
				env.Worker(eb, worker.Config{Name: "b", Slots: 4})
				g1.Serves(t, "m")
				id := submitBatch(t, g1, inputOf(lines, tokens))
				g2 := env.BatchGateway(batch.Config{})
				testenv.Eventually(t, "a part is answered", time.Minute, func() bool { return batchAt(t, g2, id).Counts.Completed > 40 })
				kill(t, env, g1)
				time.Sleep(3 * time.Second)
				wa.Kill(ea)
				env.Worker(env.Engine(engine("c")), worker.Config{Name: "c", Slots: 4})
				b := endOf(t, g2, id, 5*time.Minute)
				if b.Status != "completed" || b.Counts.Total != lines || b.Counts.Completed != lines || b.Counts.Failed != 0 || b.Usage.Total != lines*(2+tokens) {
					t.Errorf("%+v", b)
				}
				rightAnswers(t, results(t, g2, b.Output), lines, tokens)
			})
		})
	}
}

// All gateways of a batch are gone for a while, and it goes on.
func TestBatchWithoutGateways(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.BatchGateway(batch.Config{})
		env.Worker(env.Engine(slow("a")), worker.Config{Name: "a", Slots: 4})
		g.Serves(t, "m")
		id := submitBatch(t, g, inputOf(100, 5))
		for range 3 {
			time.Sleep(4 * time.Second)
			g.Link.Cut(true)
			time.Sleep(10 * time.Second)
			g = env.BatchGateway(batch.Config{})
		}
		b := endOf(t, g, id, 5*time.Minute)
		if b.Status != "completed" || b.Counts.Completed != 100 {
			t.Errorf("%+v", b)
		}
		rightAnswers(t, results(t, g, b.Output), 100, 5)
	})
}

// A batch that is cancelled keeps what was answered, and says of the other lines that they were not.
func TestBatchIsCancelled(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g1, g2 := env.BatchGateway(batch.Config{}), env.BatchGateway(batch.Config{})
		e := env.Engine(slow("a"))
		env.Worker(e, worker.Config{Name: "a", Slots: 4})
		g1.Serves(t, "m")
		id := submitBatch(t, g1, inputOf(200, 10))
		testenv.Eventually(t, "a part is answered", time.Minute, func() bool { return batchAt(t, g1, id).Counts.Completed > 10 })
		for range 2 { // at another gateway, and again
			if r := do(t, g2, "POST", "/v1/batches/"+id+"/cancel", ""); r.status != 200 || member(t, r, "status") != "cancelling" {
				t.Errorf("%d %s", r.status, r.body)
			}
		}
		b := endOf(t, g2, id, 10*time.Second)
		output, unanswered := results(t, g2, b.Output), results(t, g2, b.Errors)
		if b.Status != "cancelled" || b.Counts.Completed+b.Counts.Failed != 200 || len(output) != b.Counts.Completed || len(unanswered) != b.Counts.Failed {
			t.Errorf("%+v: %d answers, %d errors", b, len(output), len(unanswered))
		}
		for id, code := range unanswered {
			if _, both := output[id]; both || code != "batch_cancelled" {
				t.Errorf("%s: %s", id, code)
			}
		}
		idle(t, e, time.Second)
	})
}

// A batch whose time is over ends with what was answered, also if no worker was ever there, and if no gateway was there at the time.
func TestBatchExpires(t *testing.T) {
	for what, c := range map[string]struct{ worker, away bool }{
		"with a worker":     {true, false},
		"without a worker":  {false, false},
		"without a gateway": {true, true},
	} {
		t.Run(what, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := env.BatchGateway(batch.Config{})
				if c.worker {
					env.Worker(env.Engine(slow("a")), worker.Config{Name: "a", Slots: 4})
					g.Serves(t, "m")
				} else { // the model is known, and nobody serves it
					w := env.Worker(env.Engine(slow("a")), worker.Config{Name: "a", Slots: 4})
					g.Serves(t, "m")
					w.Stop()
				}
				file := uploadTo(t, g, inputOf(150, 20))
				id := member(t, do(t, g, "POST", "/v1/batches", batchOf(file, "1m")), "id")
				if c.away {
					time.Sleep(30 * time.Second)
					g.Link.Cut(true)
					time.Sleep(2 * time.Minute)
					g = env.BatchGateway(batch.Config{})
				}
				b := endOf(t, g, id, 2*time.Minute)
				output, errors := results(t, g, b.Output), results(t, g, b.Errors)
				if b.Status != "expired" || len(output) != b.Counts.Completed || len(errors) != b.Counts.Failed || len(output)+len(errors) != 150 || c.worker != (len(output) > 20) {
					t.Errorf("%+v: %d answers, %d errors", b, len(output), len(errors))
				}
				for id, code := range errors {
					if code != "batch_expired" {
						t.Errorf("%s: %s", id, code)
					}
				}
			})
		})
	}
}

// Tenants do not see each other's files and batches. A batch whose key is revoked ends, with what was answered.
func TestBatchTenants(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.BatchGateway(batch.Config{})
		env.Worker(env.Engine(slow("a")), worker.Config{Name: "a", Slots: 4})
		g.Serves(t, "m")
		acme, more, other, all := env.AddKey("acme"), env.AddKey("acme"), env.AddKey("other.*"), env.AddKey("*")
		if r := do(t, g, "GET", "/v1/files", ""); r.status != 401 {
			t.Errorf("without a key: %d", r.status)
		}
		file := uploadTo(t, g, inputOf(300, 10), "X-Api-Key", acme)
		id := member(t, do(t, g, "POST", "/v1/batches", batchOf(file, "24h"), "X-Api-Key", acme), "id")
		for _, c := range []struct {
			method, path, body string
			theirs             int
		}{
			{"GET", "/v1/files/" + file, "", 404},
			{"GET", "/v1/files/" + file + "/content", "", 404},
			{"DELETE", "/v1/files/" + file, "", 404},
			{"GET", "/v1/batches/" + id, "", 404},
			{"POST", "/v1/batches/" + id + "/cancel", "", 404},
			{"POST", "/v1/batches", batchOf(file, "24h"), 400},
		} {
			for _, key := range []string{other, all} {
				if r := do(t, g, c.method, c.path, c.body, "X-Api-Key", key); r.status != c.theirs {
					t.Errorf("%s %s of another tenant: %d %s", c.method, c.path, r.status, r.body)
				}
			}
		}
		for _, path := range []string{"/v1/files", "/v1/batches"} {
			for key, want := range map[string]bool{other: false, all: false, more: true} {
				if r := do(t, g, "GET", path, "", "X-Api-Key", key); strings.Contains(r.body, `"id"`) != want {
					t.Errorf("%s: %s", path, r.body)
				}
			}
		}
		if r := do(t, g, "DELETE", "/v1/files/"+file, "", "X-Api-Key", acme); r.status != 409 {
			t.Errorf("deletes the input of a batch that runs: %d %s", r.status, r.body)
		}
		testenv.Eventually(t, "a part is answered", time.Minute, func() bool { return batchAt(t, g, id, "X-Api-Key", more).Counts.Completed > 10 })
		env.RemoveKey(acme)
		b := endOf(t, g, id, time.Minute, "X-Api-Key", more)
		if b.Status != "cancelled" || b.Wrong == nil || b.Wrong.Data[0].Code != "api_key_revoked" || b.Counts.Completed < 10 || b.Counts.Completed+b.Counts.Failed != 300 {
			t.Errorf("%+v", b)
		}
	})
}

// An upload may be slow, but not stand still.
func TestSlowUpload(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.BatchGateway(batch.Config{})
		for what, c := range map[string]struct {
			pause  time.Duration
			pieces int
			status int
		}{
			"slow":    {23 * time.Second, 20, 200},
			"stalled": {50 * time.Second, 2, 408},
		} {
			body, contentType := form(inputOf(300, 1), "purpose", "batch")
			r, w := io.Pipe()
			var sends sync.WaitGroup
			sends.Go(func() {
				n := len(body) / c.pieces
				for ; len(body) > 0; body = body[min(n, len(body)):] {
					if _, err := io.WriteString(w, body[:min(n, len(body))]); err != nil {
						return
					}
					time.Sleep(c.pause)
				}
				w.Close()
			})
			req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://gateway/v1/files", r)
			req.Header.Set("Content-Type", contentType)
			resp, err := g.Client.Transport.RoundTrip(req)
			r.Close()
			sends.Wait()
			if err != nil || resp.StatusCode != c.status {
				t.Errorf("%s: %+v %v", what, resp, err)
			}
			if err == nil {
				resp.Body.Close()
			}
		}
		if r := do(t, g, "GET", "/v1/files", ""); strings.Count(r.body, `"file-`) != 3 { // the one, as the first and the last, too
			t.Errorf("files: %s", r.body)
		}
	})
}

// What a tenant may have is bounded, and what is too much is refused before it is taken in.
func TestBatchQuotas(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.BatchGateway(batch.Config{Disk: 100_000, TenantDisk: 60_000, TenantFiles: 4, TenantBatches: 2, TenantLines: 50})
		env.Worker(env.Engine(slow("a")), worker.Config{Name: "a", Slots: 4})
		g.Serves(t, "m")
		up := func(content, key string) string {
			body, contentType := form(content, "purpose", "batch")
			r := do(t, g, "POST", "/v1/files", body, "Content-Type", contentType, "X-Api-Key", key)
			var e struct {
				ID    string
				Error struct{ Code string }
			}
			json.Unmarshal([]byte(r.body), &e)
			return fmt.Sprint(r.status, " ", e.Error.Code)
		}
		acme, other := env.AddKey("acme"), env.AddKey("other")
		file := uploadTo(t, g, inputOf(30, 300), "X-Api-Key", acme)
		for i, want := range []string{"200 ", "429 enqueued_requests_exceeded"} {
			r := do(t, g, "POST", "/v1/batches", batchOf(file, "24h"), "X-Api-Key", acme)
			if !strings.HasPrefix(want, fmt.Sprint(r.status)) || i > 0 && (!strings.Contains(r.body, "enqueued_requests_exceeded") || r.header.Get("X-Should-Retry") != "false") {
				t.Errorf("%d %s, want %s", r.status, r.body, want)
			}
		}
		if got := up(strings.Repeat("x", 60_000), acme); got != "507 tenant_storage_full" {
			t.Error(got)
		}
		for range 3 {
			if got := up("x", acme); got != "200 " {
				t.Error(got)
			}
		}
		if got := up("x", acme); got != "507 too_many_files" {
			t.Error(got)
		}
		if got := up(strings.Repeat("x", 55_000), other); got != "200 " {
			t.Error(got)
		}
		third := env.AddKey("third")
		if got := up(strings.Repeat("x", 55_000), third); got != "507 storage_full" {
			t.Error(got)
		}
	})
}

// Files are listed in pages, and go when they expire, also if no gateway is there.
func TestFilesAreListedAndExpire(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.BatchGateway(batch.Config{})
		var ids []string
		for range 5 {
			ids = append(ids, uploadTo(t, g, "x\n"))
			time.Sleep(time.Second)
		}
		body, contentType := form("y\n", "purpose", "batch", "expires_after[anchor]", "created_at", "expires_after[seconds]", "3600")
		short := member(t, do(t, g, "POST", "/v1/files", body, "Content-Type", contentType), "id")
		pages := func(query string) (all []string) {
			after := ""
			for {
				r := do(t, g, "GET", "/v1/files?limit=2&"+query+after, "")
				var l struct {
					Data []struct{ ID string }
					More bool   `json:"has_more"`
					Last string `json:"last_id"`
				}
				if err := json.Unmarshal([]byte(r.body), &l); err != nil {
					t.Fatal(r.body)
				}
				for _, f := range l.Data {
					all = append(all, f.ID)
				}
				if after = "&after=" + l.Last; !l.More {
					return all
				}
			}
		}
		want := append(slices.Clone(ids), short)
		if got := pages("order=asc"); !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
		slices.Reverse(want)
		if got := pages("purpose=batch"); !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
		if got := pages("purpose=batch_output"); len(got) != 0 {
			t.Errorf("%v", got)
		}
		g.Stop()
		time.Sleep(3 * time.Hour)
		js := env.JetStream()
		content, err := js.Stream(t.Context(), subjects.FilesStream)
		if err != nil || content.CachedInfo().State.Msgs != 5 {
			t.Errorf("%v, want the content of 5 files", content.CachedInfo().State)
		}
		g = env.BatchGateway(batch.Config{})
		if r := do(t, g, "GET", "/v1/files/"+short, ""); r.status != 404 {
			t.Errorf("%d %s", r.status, r.body)
		}
		if got := pages("order=asc"); !slices.Equal(got, ids) {
			t.Errorf("%v, want %v", got, ids)
		}
	})
}

// Lines that a key's limit refuses run later; none is lost.
func TestBatchWithinLimits(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.BatchGateway(batch.Config{})
		env.Worker(env.Engine(slow("a")), worker.Config{Name: "a", Slots: 4})
		g.Serves(t, "m")
		key := env.AddKey("acme", func(k *policy.Key) { k.RPM = 60 })
		id := submitBatch(t, g, inputOf(150, 2), "X-Api-Key", key)
		b := endOf(t, g, id, 10*time.Minute, "X-Api-Key", key)
		if b.Status != "completed" || b.Counts.Completed != 150 {
			t.Errorf("%+v", b)
		}
		rightAnswers(t, results(t, g, b.Output, "X-Api-Key", key), 150, 2)
	})
}
