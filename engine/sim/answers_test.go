package sim_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/testenv"
)

// TestSimsAnswerAsRecordedEngines puts a simulated engine of each dialect into the states in which the answers were
// recorded, and asks it the same. Of what it refuses, the status, the form and the words must be the engine's, both ways;
// numbers may differ. What a page reports must be part of what the engine reports there.
func TestSimsAnswerAsRecordedEngines(t *testing.T) {
	for _, r := range testenv.Recordings(t, "../testdata/answers") {
		for _, a := range r.Answers {
			t.Run(r.Engine+", "+a.Name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					got := ask(t, r, a)
					if got == nil {
						t.Skip("a simulated engine cannot come into this state")
					}
					if got.Code != a.Status {
						t.Fatalf("got %d %s, want %d", got.Code, got.Body, a.Status)
					}
					if kind, _, _ := mime.ParseMediaType(got.Header().Get("Content-Type")); a.Body != "" && kind != a.Type {
						t.Errorf("got %q, want %q", kind, a.Type)
					}
					switch {
					case strings.Contains(a.Body, "# TYPE "):
						comparePages(t, got.Body.String(), a.Body)
					case a.Body == "" && a.Type == "":
						if got.Body.Len() > 0 {
							t.Errorf("got %s, want nothing", got.Body)
						}
					case a.Body == "":
					case a.Status < 300 && a.Type == "application/json" && a.Fault == "":
						if more := missingIn(shape(t, got.Body.String()), shape(t, a.Body)); len(more) > 0 {
							t.Errorf("the engine's answer does not have %q", more)
						}
					default:
						if got, want := plainly(got.Body.String()), plainly(a.Body); got != want {
							t.Errorf("got  %s\nwant %s", got, want)
						}
					}
				})
			})
		}
	}
}

// ask puts a question to an engine in the state that the name of the answer tells; nil if there is no such state.
func ask(t *testing.T, r testenv.Recording, a testenv.Answer) *httptest.ResponseRecorder {
	cfg := sim.Config{Models: []string{r.Model}, Dialect: r.Dialect, Context: r.Context}
	full := false
	switch {
	case strings.HasPrefix(a.Name, "loading"):
		cfg.StartTime = time.Hour
	case a.Name == "unauthorized":
		cfg.APIKey = "secret"
	case strings.HasPrefix(a.Name, "overloaded"):
		cfg.Slots, cfg.MaxQueue, full = 1, 1, true
	case strings.HasSuffix(a.Name, "of a router"):
		cfg.Models = append(cfg.Models, "another")
	case slices.Contains([]string{"generation failed", "unhealthy", "metrics are off", "no model is loaded", "a load failed",
		"too long for a model that cannot shift its context"}, a.Name):
		return nil
	}
	eng := newSim(t, cfg)
	if full {
		for range 2 {
			req := post("/v1/chat/completions", strings.Replace(chatBody("x", ""), `"m"`, fmt.Sprintf("%q", r.Model), 1))
			req.Header.Set("x-sim", "hang")
			go eng.ServeHTTP(httptest.NewRecorder(), req.WithContext(t.Context())) // ends with the test
			synctest.Wait()
		}
	}
	w := httptest.NewRecorder()
	req := httptest.NewRequest(a.Method, a.Path, strings.NewReader(a.Request))
	eng.ServeHTTP(w, req)
	return w
}

func post(path, body string) *http.Request {
	return httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
}

var number = regexp.MustCompile(`\d+(\.\d+)?`)

// plainly is a text in which numbers are alike, and in which objects have their members in order.
func plainly(text string) string {
	var lines []string
	for line := range strings.Lines(strings.TrimSpace(text)) {
		line = strings.TrimSpace(line)
		data, isData := strings.CutPrefix(line, "data: ")
		var v any
		if json.Unmarshal([]byte(data), &v) == nil {
			b, _ := json.Marshal(v)
			if data = string(b); isData {
				data = "data: " + data
			}
			line = data
		}
		lines = append(lines, number.ReplaceAllString(line, "N"))
	}
	return strings.Join(lines, "\n")
}

// shape lists the members of all objects in a JSON text, with their kinds.
func shape(t *testing.T, text string) map[string]bool {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	members := make(map[string]bool)
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for name, m := range v {
				walk(path+"."+name, m)
			}
		case []any:
			for _, m := range v {
				walk(path+"[]", m)
			}
			if len(v) == 0 {
				members[path+"[]"] = true
			}
		case nil:
			members[path+": null"] = true
		default:
			members[fmt.Sprintf("%s: %T", path, v)] = true
		}
	}
	walk("", v)
	return members
}

// missingIn lists what a shape has and another one does not. null stands for any kind, and an empty list for any list.
func missingIn(shape, in map[string]bool) (missing []string) {
	begins := func(path string) bool {
		for other := range in {
			if rest, ok := strings.CutPrefix(other, path); ok && (rest == "" || strings.ContainsAny(rest[:1], ".[:")) {
				return true
			}
		}
		return false
	}
	for _, member := range slices.Sorted(maps.Keys(shape)) {
		path, kind, _ := strings.Cut(member, ": ")
		nullable := in[path+": null"]
		if !in[member] && !nullable && !(kind == "null" && begins(path)) && !(kind == "" && begins(strings.TrimSuffix(path, "[]"))) {
			missing = append(missing, member)
		}
	}
	return missing
}

// comparePages checks that each metric of a page is on the engine's page.
func comparePages(t *testing.T, page, recorded string) {
	t.Helper()
	names := func(page string) map[string]bool {
		found := make(map[string]bool)
		for line := range strings.Lines(page) {
			if name, _, ok := strings.Cut(line, " "); ok && name != "#" {
				name, _, _ = strings.Cut(name, "{")
				found[name] = true
			}
		}
		return found
	}
	known := names(recorded)
	for name := range names(page) {
		if !known[name] {
			t.Errorf("the engine's page does not have %s", name)
		}
	}
}
