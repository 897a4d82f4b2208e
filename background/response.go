package background

import (
	"cmp"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/subjects"
)

// Status says how far a response is.
type Status string

const (
	Queued     Status = "queued"
	InProgress Status = "in_progress"
	Completed  Status = "completed"
	Failed     Status = "failed"
	Cancelled  Status = "cancelled"
	Incomplete Status = "incomplete"
)

// Final says that the status does not change any more.
func (s Status) Final() bool { return s != Queued && s != InProgress }

// Response is what is known of a background response, without its content.
type Response struct {
	ID      string    `json:"id"`
	Tenant  string    `json:"tenant"`
	Key     string    `json:"key,omitzero"` // id of the API key; empty: none was needed
	Path    string    `json:"path"`
	Model   string    `json:"model,omitzero"`
	Status  Status    `json:"status"`
	Created time.Time `json:"created"`
	Ended   time.Time `json:"ended,omitzero"`
	Runs    int       `json:"runs"`             // that have begun
	Broken  int       `json:"broken"`           // runs that broke off
	Gateway string    `json:"gateway,omitzero"` // that runs it; empty: none does
	Known   bool      `json:"known,omitzero"`   // a gateway has known its model since it was accepted
	Unknown int       `json:"unknown,omitzero"` // runs for which none did
	Error   string    `json:"error,omitzero"`   // why it failed
	Next    int       `json:"next"`             // number of its next event, as far as it is known
	Part    string    `json:"part,omitzero"`    // of the data that has its object; empty: the state has it
	Size    int       `json:"size,omitzero"`    // of that part, in bytes

	object   []byte // for clients; its status may be older
	revision uint64 // of the state's message
}

// isResponses says whether the response is one of the Responses API: it has events, and its own object.
func (r *Response) isResponses() bool { return isResponses(r.Path) }

func isResponses(path string) bool {
	path, _, _ = strings.Cut(path, "?")
	return strings.HasSuffix(path, "/responses") && api.Of(path) == api.Responses
}

// newObject is the object of a response that has just been accepted.
func newObject(r *Response, body []byte) []byte {
	if !r.isResponses() {
		out, _ := with([]byte("{}"),
			member{"id", text(r.ID)}, member{"object", text("background.answer")}, member{"created_at", seconds(r.Created)}, member{"completed_at", null},
			member{"status", text(string(r.Status))}, member{"background", yes}, member{"path", text(r.Path)}, member{"model", text(r.Model)},
			member{"error", null}, member{"answer", null})
		return out
	}
	sent := make(map[string]jsontext.Value)
	members(body, func(name string, v jsontext.Value) { sent[name] = v.Clone() })
	or := func(name, usual string) member {
		v, ok := sent[name]
		if !ok || v.Kind() == 'n' {
			v = jsontext.Value(usual)
		}
		return member{name, v}
	}
	out, _ := with([]byte("{}"),
		member{"id", text(r.ID)}, member{"object", text("response")}, member{"created_at", seconds(r.Created)}, member{"status", text(string(r.Status))},
		member{"background", yes}, member{"completed_at", null}, member{"error", null}, member{"incomplete_details", null}, or("instructions", "null"),
		or("max_output_tokens", "null"), or("metadata", "{}"), member{"model", text(r.Model)}, member{"output", jsontext.Value("[]")},
		or("parallel_tool_calls", "true"), or("previous_response_id", "null"), or("reasoning", "null"), member{"store", yes},
		or("service_tier", `"auto"`), or("temperature", "null"), or("text", "null"), or("tool_choice", `"auto"`), or("tools", "[]"), or("top_p", "null"),
		or("truncation", `"disabled"`), member{"usage", null})
	return out
}

var (
	null = jsontext.Value("null")
	yes  = jsontext.Value("true")
)

func seconds(t time.Time) jsontext.Value {
	if t.IsZero() {
		return null
	}
	return strconv.AppendInt(nil, t.Unix(), 10)
}

// mark writes the status of a response into its object, and its error if it has failed.
func (r *Response) mark() {
	changes := []member{{"status", text(string(r.Status))}}
	if r.Status == Completed {
		changes = append(changes, member{"completed_at", seconds(r.Ended)})
	}
	if r.Status == Failed && get(r.object, "error").Kind() != '{' {
		e, _ := with([]byte("{}"), member{"code", text("server_error")}, member{"message", text(cmp.Or(r.Error, "the response failed"))})
		changes = append(changes, member{"error", e})
	}
	if marked, err := with(r.object, changes...); err == nil {
		r.object = marked
	}
}

// adopt makes the object of an engine that of the response.
func (r *Response) adopt(engines []byte) ([]byte, error) {
	return with(engines, member{"id", text(r.ID)}, member{"background", yes}, member{"created_at", seconds(r.Created)})
}

// job is what a gateway needs to run a response.
type job struct {
	ID       string      `json:"id"`
	Tenant   string      `json:"tenant"`
	Key      string      `json:"key,omitzero"`
	Path     string      `json:"path"` // with the query
	Header   http.Header `json:"header"`
	Size     int         `json:"size"` // of the body
	Created  time.Time   `json:"created"`
	Deadline time.Time   `json:"deadline"`
}

// notStored are headers of a call that say who sends it, how long its client waits, or how it is to be answered. The prefixes and
// suffixes of notStoredLike are as good as that.
var notStored = map[string]bool{
	"Authorization": true, "Cookie": true, "Cookie2": true, "Api-Key": true, "Apikey": true, "X-Apikey": true, "X-Goog-Api-Key": true, "X-Csrf-Token": true,
	"X-Amz-Security-Token": true, "Prefer": true, "Idempotency-Key": true, "Accept-Encoding": true, "Content-Length": true, "Expect": true, "Connection": true,
	"X-Request-Timeout": true, "X-Stainless-Timeout": true, "X-Stainless-Read-Timeout": true, "X-Stainless-Retry-Count": true,
}

// stored are those headers of a call that are kept for its run.
func stored(h http.Header) http.Header {
	out := make(http.Header, len(h))
	for name, values := range h {
		plain := http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
		secret := strings.HasSuffix(plain, "-Key") || strings.HasSuffix(plain, "-Token") || strings.HasSuffix(plain, "-Authorization")
		if !notStored[plain] && !secret {
			out[name] = values
		}
	}
	subjects.EndToEnd(out)
	return out
}
