package scenarios

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// Bodies and answers pass byte for byte, with the exceptions that docs/clients.md lists.
func TestBytesThatChange(t *testing.T) {
	const (
		form    = "--B\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nM\r\n--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n\x00M\r\n--B--\r\n"
		message = `"choices":[{"index":0,"message":{"content":"a"},"finish_reason":"stop"}]`
	)
	zipped := func(s string) string {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		io.WriteString(z, s)
		z.Close()
		return b.String()
	}
	for about, c := range map[string]struct {
		path, body, contentType string
		sees                    string // the engine; empty: the body
		seesPath                string
		says, saysType          string // the engine's answer
		encoding                string
		gets                    string // the client; empty: what the engine says
	}{
		"white space and order": {body: "{ \"messages\" : [ ],\t\"model\":\"m\" , \"x\": 1e400, \"é\":\"\\u00e9\"}\n"},
		"a tier of OpenAI's":    {body: `{"model":"m","service_tier":"flex"}`, says: `{"service_tier":"default",` + message + `}`, gets: `{"service_tier":"flex",` + message + `}`},
		"a tier of ours":        {body: `{"service_tier": "batch" ,"model":"m"}`, sees: `{"service_tier": "auto" ,"model":"m"}`, says: `{"model":"m",` + message + `}`, gets: `{"model":"m","service_tier":"batch",` + message + `}`},
		"no tier":               {body: `{"model":"m"}`, says: `{"service_tier":"default",` + message + `}`},
		"a rename":              {body: `{"model": "gpt-4o" }`, sees: `{"model": "m" }`, says: `{"model": "m",` + message + ` }`},
		"a rename, restored":    {body: `{"model":"gpt-5","a":"m"}`, sees: `{"model":"m","a":"m"}`, says: `{ "model": "m",` + message + ` }`, gets: `{ "model": "gpt-5",` + message + ` }`},
		"restored in a stream": {body: `{"model":"gpt-5","stream":true}`, sees: `{"model":"m","stream":true}`, saysType: "text/event-stream",
			says: ": hi\r\n\r\ndata: {\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"m\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n",
			gets: ": hi\r\n\r\ndata: {\"model\":\"gpt-5\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"m\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n"},
		"restored, but compressed": {body: `{"model":"gpt-5"}`, sees: `{"model":"m"}`, says: zipped(`{"model":"m",` + message + `}`), encoding: "gzip"},
		"a rename in a form":       {path: "/v1/audio/transcriptions", contentType: "multipart/form-data; boundary=B", body: strings.Replace(form, "\r\nM\r\n", "\r\ngpt-4o\r\n", 1), sees: strings.Replace(form, "\r\nM\r\n", "\r\nm\r\n", 1), says: `{"text":"M"}`},
		"a rename in a path":       {path: "/v2/models/gpt-4o/infer?x=%20", body: `{"inputs":[]}`, seesPath: "/v2/models/m/infer?x=%20", says: `{"outputs":[1]}`},
		"a form":                   {path: "/v1/audio/transcriptions", contentType: "multipart/form-data; boundary=B", body: strings.Replace(form, "M", "m", 1), says: "1\n00:00\n", saysType: "text/plain"},
		"an error of the request":  {body: `{"model":"gpt-5"}`, sees: `{"model":"m"}`, says: "{\"error\":{\"message\":\"the prompt is bad\",\"type\":\"invalid_request_error\"},\n\"model\":\"m\"}"},
		"audio":                    {path: "/v1/audio/speech", body: `{"model":"m","stream":true}`, says: "ID3\x00\xff\r\r\n\n", saysType: "audio/mpeg"},
		"JSON lines":               {path: "/api/chat", body: `{"model":"gpt-5"}`, sees: `{"model":"m"}`, saysType: "application/x-ndjson", says: "{\"model\":\"m\", \"message\":{\"content\":\"a\"}}\r\n{\"done\":true}\n", gets: "{\"model\":\"gpt-5\", \"message\":{\"content\":\"a\"}}\r\n{\"done\":true}\n"},
	} {
		run(t, func(t *testing.T, env *Env) {
			type call struct{ body, uri string }
			var saw atomic.Pointer[call]
			g := env.Gateway(gateway.Config{})
			env.Worker(env.Handler("e", engineOf(func(w http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				saw.Store(&call{string(b), r.RequestURI})
				if c.says == "" {
					c.says = `{` + message + `}`
				}
				if c.saysType == "" {
					c.saysType = "application/json"
				}
				w.Header().Set("Content-Type", c.saysType)
				if c.encoding != "" {
					w.Header().Set("Content-Encoding", c.encoding)
				}
				if strings.Contains(c.says, `"error"`) {
					w.WriteHeader(400)
				}
				io.WriteString(w, c.says)
			}, "m")), worker.Config{Name: "e", Pool: "m", Slots: 4})
			testenv.Eventually(t, "worker", 10*time.Second, func() bool { return len(g.Models()) > 0 })
			to := []policy.Target{{Pool: "m", Weight: 1}}
			env.SetPolicy(func(p *policy.Policy) {
				p.Routes = map[string]policy.Route{"gpt-4o": {To: to}, "gpt-5": {To: to, RestoreModel: true}}
			})
			time.Sleep(2 * time.Second)
			path, ct := c.path, c.contentType
			if path == "" {
				path = "/v1/chat/completions"
			}
			if ct == "" {
				ct = "application/json"
			}
			r := do(t, g, "POST", path, c.body, "Content-Type", ct)
			want := call{c.body, path}
			if c.sees != "" {
				want.body = c.sees
			}
			if c.seesPath != "" {
				want.uri = c.seesPath
			}
			if got := saw.Load(); got == nil || *got != want {
				t.Errorf("%s: the engine saw %q, want %q", about, got, want)
			}
			gets := c.says
			if c.gets != "" {
				gets = c.gets
			}
			if r.body != gets {
				t.Errorf("%s: the client got %d %q, want %q", about, r.status, r.body, gets)
			}
		})
	}
}
