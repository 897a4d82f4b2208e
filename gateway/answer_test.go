package gateway

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

const chatPath = "/v1/chat/completions"

// both edits, as a route with restore_model and a client that asked for a tier.
var both = api.Edits{Model: "gpt-4o", Tier: "batch"}

// answering begins an answer to a recorder, for a request to path.
func answering(path string, ed api.Edits) (*answer, *httptest.ResponseRecorder) {
	headers, err := newAnswerHeaders(nil)
	if err != nil {
		panic(err)
	}
	s := &server{bus: new(bus), cfg: &Config{SlowClient: time.Minute}, metrics: newMetrics("g", "dev", Labels{}), headers: headers}
	now := time.Now()
	r := newRequest(&spec{
		wire: &subjects.Request{Stream: true}, api: api.Of(path), edits: ed, arrived: now, deadline: now.Add(time.Minute),
		admitted: target{queue: newQueues().get("p", "batch"), tier: policy.Tier{Name: "batch"}, lane: subjects.Shared},
	}, nil)
	r.attempt = &attempt{}
	w := httptest.NewRecorder()
	return s.newAnswer(w, r), w
}

func head(t *testing.T, a *answer, status int, length int64, header ...string) {
	t.Helper()
	h := &subjects.Head{Status: status, Header: http.Header{}, Length: length}
	for i := 0; i+1 < len(header); i += 2 {
		h.Header.Set(header[i], header[i+1])
	}
	if err := a.head(h); err != nil {
		t.Fatal(err)
	}
}

func data(t *testing.T, a *answer, pieces ...string) {
	t.Helper()
	for _, p := range pieces {
		if err := a.data([]byte(p), true); err != nil {
			t.Fatal(err)
		}
	}
}

func end(t *testing.T, a *answer) {
	t.Helper()
	if err := a.end(new(subjects.End)); err != nil {
		t.Fatal(err)
	}
}

const (
	llama  = `{"model":"llama","choices":[]}`
	gpt    = `{"model":"gpt-4o","service_tier":"batch","choices":[]}`
	stream = "text/event-stream; charset=utf-8"
)

func TestAnswerEdited(t *testing.T) {
	big := `{"model":"llama","a":"` + strings.Repeat("a", maxHeld) + `"}`
	for about, c := range map[string]struct {
		ed       api.Edits
		status   int
		header   []string
		in, want string
	}{
		"JSON":                       {both, 200, []string{"Content-Type", "application/json"}, llama, gpt},
		"JSON of a charset":          {both, 200, []string{"Content-Type", "application/json; charset=utf-8"}, llama, gpt},
		"JSON as it came":            {api.Edits{}, 200, []string{"Content-Type", "application/json"}, llama, llama},
		"created":                    {both, 201, []string{"Content-Type", "application/json"}, llama, gpt},
		"an error":                   {both, 400, []string{"Content-Type", "application/json"}, llama, llama},
		"a failure":                  {both, 500, []string{"Content-Type", "application/json"}, llama, llama},
		"compressed":                 {both, 200, []string{"Content-Type", "application/json", "Content-Encoding", "gzip"}, llama, llama},
		"not compressed":             {both, 200, []string{"Content-Type", "application/json", "Content-Encoding", "identity"}, llama, gpt},
		"text":                       {both, 200, []string{"Content-Type", "text/plain"}, llama, llama},
		"no type":                    {both, 200, nil, llama, llama},
		"more than is held":          {both, 200, []string{"Content-Type", "application/json"}, big, big},
		"a stream":                   {both, 200, []string{"Content-Type", stream}, "data: " + llama + "\n\n", "data: " + gpt + "\n\n"},
		"a stream as it came":        {api.Edits{}, 200, []string{"Content-Type", stream}, "data: " + llama + "\n\n", "data: " + llama + "\n\n"},
		"a stream that is an error":  {both, 400, []string{"Content-Type", stream}, "data: " + llama + "\n\n", "data: " + llama + "\n\n"},
		"a stream that is packed":    {both, 200, []string{"Content-Type", stream, "Content-Encoding", "br"}, "data: " + llama + "\n\n", "data: " + llama + "\n\n"},
		"a stream of JSON lines":     {both, 200, []string{"Content-Type", "application/x-ndjson"}, llama + "\n" + llama, gpt + "\n" + gpt},
		"a stream without a newline": {both, 200, []string{"Content-Type", stream}, "data: " + llama, "data: " + gpt},
		"nothing":                    {both, 200, []string{"Content-Type", "application/json"}, "", ""},
		"a stream of nothing":        {both, 200, []string{"Content-Type", stream}, "", ""},
	} {
		for _, told := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, length told %t", about, told), func(t *testing.T) {
				a, w := answering(chatPath, c.ed)
				length, header := int64(-1), c.header
				if told {
					length = int64(len(c.in))
					header = append(slices.Clip(header), "Content-Length", fmt.Sprint(len(c.in)))
				}
				head(t, a, c.status, length, header...)
				for piece := range slices.Chunk([]byte(c.in), len(c.in)/3+1) {
					data(t, a, string(piece))
				}
				if a.size != int64(len(c.in)) {
					t.Errorf("counts %d bytes, the worker sent %d", a.size, len(c.in))
				}
				end(t, a)
				if got := w.Body.String(); got != c.want || w.Code != c.status {
					t.Errorf("got %d %.100q, want %d %.100q", w.Code, got, c.status, c.want)
				}
				if got := w.Header().Get("Content-Length"); got != "" && got != fmt.Sprint(len(c.want)) {
					t.Errorf("Content-Length %s of %d bytes", got, len(c.want))
				}
				if !a.whole || w.Header().Get("X-Service-Tier") != "batch" || a.r.bytesOut.Load() != int64(len(c.want)) {
					t.Errorf("whole %t, header %v, %d bytes written", a.whole, w.Header(), a.r.bytesOut.Load())
				}
			})
		}
	}
}

// While only the begin of a line has come, nothing was sent: another attempt is
// still possible, and nothing of the first is left in it.
func TestAnswerEditedFailsOver(t *testing.T) {
	a, w := answering(chatPath, both)
	head(t, a, 200, -1, "Content-Type", stream)
	data(t, a, `data: {"model":"llama","choi`)
	if a.begun || a.r.begun || w.Flushed {
		t.Fatal("it has begun")
	}
	a.reset()
	head(t, a, 200, -1, "Content-Type", stream)
	data(t, a, "data: "+llama+"\n\n", "data: [DO", "NE]\n\n")
	end(t, a)
	if got, want := w.Body.String(), "data: "+gpt+"\n\ndata: [DONE]\n\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A line that breaks off is left out, so that the error is an event of its own.
func TestAnswerEditedBreaksOff(t *testing.T) {
	for _, before := range []string{"data: " + llama + "\n\n", "data: " + llama + "\n\nevent: a\n"} {
		a, w := answering(chatPath, both)
		head(t, a, 200, -1, "Content-Type", stream)
		data(t, a, before+`data: {"model":"llama","choi`)
		if err := a.keepAlive(time.Now()); err != nil {
			t.Fatal(err)
		}
		if err := a.refuse(&api.Error{Status: 502, Code: "upstream_lost", Message: "broke off"}); err != nil {
			t.Fatal(err)
		}
		got := w.Body.String()
		if strings.Contains(got, "llama") || !strings.HasPrefix(got, "data: "+gpt+"\n\n") || !strings.Contains(got, "\n\ndata: {\"error\"") {
			t.Errorf("got %q", got)
		}
	}
}

// A client that was promised a stream gets a plain answer as one event, edited.
func TestAnswerEditedInsteadOfStream(t *testing.T) {
	a, w := answering(chatPath, both)
	if err := a.keepAlive(time.Now()); err != nil {
		t.Fatal(err)
	}
	head(t, a, 200, int64(len(llama)), "Content-Type", "application/json")
	data(t, a, llama)
	end(t, a)
	if got, want := w.Body.String(), ": working\n\ndata: "+gpt+"\n\n"; got != want && got != strings.Replace(want, "working", "queued position=1", 1) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// An engine's refusal is given back as it is.
func TestAnswerRefusalNotEdited(t *testing.T) {
	a, w := answering(chatPath, both)
	head(t, a, 200, -1, "Content-Type", "application/json")
	data(t, a, llama)
	err := a.giveBack(&subjects.Fail{Answer: &subjects.Head{Status: 429, Header: http.Header{"Content-Type": {"application/json"}}}, Body: []byte(llama)})
	if err != nil || w.Code != 429 || w.Body.String() != llama {
		t.Errorf("got %d %s, %v", w.Code, w.Body, err)
	}
}

func TestAnswerEditedMalformed(t *testing.T) {
	a, _ := answering(chatPath, both)
	if err := a.data([]byte("a"), true); !errors.Is(err, errMalformed) {
		t.Errorf("got %v", err)
	}
}

// However a stream is cut on its way, the client gets whole lines, at once and whether or not a blank one follows, so that it can
// read the error that ends a stream whose worker is gone. What ends as the engine means it arrives byte by byte.
func TestAnswerOfWholeLines(t *testing.T) {
	for _, text := range []string{
		"data: {\"a\":1}\n\ndata: {\"a\":22}\n\ndata: [DONE]\n\n",
		"data: {\"a\":1}\r\n\r\nevent: x\r\ndata: {\"a\":22}\r\n\r\n: comment\r\n\r\n",
		"event: a\ndata: {}\n\n\n\ndata: 1\ndata: 2\n\ndata: without an end\n",
		"data: {}\r\rdata: {}\r\r",
		"data: {}\ndata: {}\ndata: [DONE]\n",
	} {
		for cut := range len(text) {
			for _, size := range []int{1, 2, 5, len(text)} {
				a, w := answering(chatPath, api.Edits{})
				head(t, a, 200, -1, "Content-Type", stream)
				for rest := text[:cut]; rest != ""; {
					n := min(size, len(rest))
					data(t, a, rest[:n])
					rest = rest[n:]
				}
				got := w.Body.String()
				if want := text[:strings.LastIndexAny(text[:cut], "\r\n")+1]; got != want {
					t.Fatalf("%q in pieces of %d: %q, want %q", text[:cut], size, got, want)
				}
				data(t, a, text[cut:])
				if end(t, a); w.Body.String() != text {
					t.Fatalf("%q, cut at %d: %q", text, cut, w.Body)
				}
			}
		}
	}
	a, w := answering(chatPath, api.Edits{})
	head(t, a, 200, -1, "Content-Type", stream)
	data(t, a, "data: {\"choices\":[]}\n\nda", "ta: {\"choi")
	if err := a.refuse(api.Errorf(502, "upstream_lost", "gone")); err != nil {
		t.Fatal(err)
	}
	if got := w.Body.String(); strings.Contains(got, "choi\n") || !strings.HasPrefix(got, "data: {\"choices\":[]}\n\ndata: {\"error\"") {
		t.Errorf("%q", got)
	}

	a, w = answering(chatPath, api.Edits{}) // the end of a long event does not come soon
	head(t, a, 200, -1, "Content-Type", stream)
	long := "data: " + strings.Repeat("a", maxPart)
	if data(t, a, long); w.Body.String() != long {
		t.Errorf("%d bytes of %d", w.Body.Len(), len(long))
	}

	a, w = answering(chatPath, api.Edits{}) // what is compressed has no events
	head(t, a, 200, -1, "Content-Type", stream, "Content-Encoding", "gzip")
	if data(t, a, "\x1f\x8b"); w.Body.String() != "\x1f\x8b" {
		t.Errorf("%q", w.Body)
	}
}

// Pieces that come together are flushed with the last of them, even if that has no whole line.
func TestAnswerFlushesLinesBeforeAPart(t *testing.T) {
	a, w := answering(chatPath, api.Edits{})
	head(t, a, http.StatusOK, -1, "Content-Type", stream)
	if err := a.data([]byte("data: {}\n\n"), false); err != nil || w.Flushed {
		t.Fatal(err, w.Flushed)
	}
	if data(t, a, "data: {"); !w.Flushed {
		t.Error("a whole line waits for the end of the next one")
	}
}

// A line longer than what is kept of one passes as it comes.
func TestAnswerOfALongLine(t *testing.T) {
	a, w := answering(chatPath, api.Edits{})
	head(t, a, http.StatusOK, -1, "Content-Type", stream)
	text := "data: " + strings.Repeat("x", maxPart)
	if data(t, a, text[:maxPart]); w.Body.Len() > 0 {
		t.Fatalf("%d bytes without the end of a line", w.Body.Len())
	}
	if data(t, a, text[maxPart:]); w.Body.String() != text {
		t.Errorf("%d bytes, want %d", w.Body.Len(), len(text))
	}
}
