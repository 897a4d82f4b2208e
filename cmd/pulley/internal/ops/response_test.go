package ops

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/background"
	"github.com/pulley-lb/pulley/gateway"
)

func TestResponses(t *testing.T) {
	s := newSite(t)
	s.story(step{"response ls", 0, "no background responses\n"}, step{"response info resp_1", 3, "pulley: no background response resp_1; see 'pulley response ls'\n"})
	service, err := background.New(background.Config{}, s.nc)
	if err != nil {
		t.Fatal(err)
	}
	accept := func(tenant, path, body string) (id string) {
		t.Helper()
		w, r := httptest.NewRecorder(), httptest.NewRequest("POST", path, strings.NewReader(body))
		r.Header.Set("Prefer", "respond-async")
		if err := service.Take(w, r, gateway.Caller{Tenant: tenant, Key: "k1"}, []byte(body)); err != nil {
			t.Fatal(err)
		}
		return strings.TrimPrefix(w.Header().Get("Location"), "/v1/responses/")
	}
	first := accept("acme", "/v1/responses", `{"model":"llama","input":"tell me of dragons"}`)
	second := accept("bee", "/v1/chat/completions", `{"model":"qwen","messages":[]}`)
	s.story(
		step{"response ls", 0, `ID +STATUS +MODEL +TENANT +AGE +RUNS *\n\S+ +queued +llama +acme .*\n\S+ +queued +qwen +bee .*\n`},
		step{"response ls --tenant bee", 0, `ID.*\n\S+ +queued +qwen [^\n]*\n`},
		step{"response ls --status failed", 0, "none of 2 background responses matches\n"},
		step{"response ls --status odd", 2, `pulley: --status "odd": must be one of .*`},
		step{"response info " + first[:20], 0, `response +` + first + `\nstatus +queued\n.*model +llama\n.*key +k1\n.*runs +0 \(0 broke off\)\n`},
		step{"response info " + second + " --show-body", 0, `.*"object":"background.answer".*`},
		step{"response info resp_", 2, `pulley: "resp_": 2 background responses begin or end with it.*`},
		step{"response cancel " + first, 4, `pulley: cancel background response .*`},
		step{"response cancel " + first + " nosuch --force", 3, `pulley: no background response nosuch.*`},
		step{"response cancel " + first + " --force", 0, "background response " + first + " cancelled\n"},
		step{"response info " + first, 0, `.*status +cancelled\n.*ended .*`},
		step{"response cancel " + first[len(first)-12:] + " --force", 0, "background response " + first + " cancelled\n"},
	)
	if out := s.ok("response info " + first + " -o json"); strings.Contains(out, "dragons") || !strings.Contains(out, `"status": "cancelled"`) {
		t.Errorf("info: %s", out)
	}
}
