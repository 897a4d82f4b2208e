package engine_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pulley-lb/pulley/engine"
)

// listings keeps what a Scraper reports of an engine's models.
type listings struct {
	mu  sync.Mutex
	all []engine.Listing
	bad bool // what the callback says of them
}

func (l *listings) add(got engine.Listing) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, got)
	return !l.bad
}

func (l *listings) judge(bad bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bad = bad
}

// take returns what has come since the last call.
func (l *listings) take() []engine.Listing {
	l.mu.Lock()
	defer l.mu.Unlock()
	got := l.all
	l.all = nil
	return got
}

func TestListing(t *testing.T) {
	for name, test := range map[string]struct {
		body   string // of /v1/models, see pages
		models string
		status int
		err    string
	}{
		"two models":           {`{"data":[{"id":"b"},{"id":"a"}]}`, "b a", 200, ""},
		"none":                 {`{"data":[]}`, "", 200, ""},
		"one without a name":   {`{"data":[{"id":""},{"id":"a"}]}`, " a", 200, ""},
		"not JSON":             {"loading", "", 200, "GET /v1/models: invalid character 'l' looking for beginning of value"},
		"a web page":           {"<!doctype html><html><head><title>Open\n WebUI</title>", "", 200, `GET /v1/models: an HTML page ("Open WebUI"), not JSON`},
		"no such page":         {"404", "", 404, "GET /v1/models: 404 Not Found"},
		"the engine is broken": {"500", "", 500, "GET /v1/models: 500 Internal Server Error"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var ls listings
				watch(t, engine.ScraperConfig{Client: clientOf(pages{"/v1/models": test.body, "/health": ""}), Dialect: engine.DialectVLLM, OnListing: ls.add})
				synctest.Wait()
				got := ls.take()
				if len(got) != 1 {
					t.Fatalf("%d listings at the start, want 1", len(got))
				}
				l := got[0]
				text := ""
				if l.Err != nil {
					text = l.Err.Error()
				}
				if strings.Join(l.Models, " ") != test.models || l.Status != test.status || text != test.err || (l.Models == nil) != (test.err != "") {
					t.Errorf("got %+v", l)
				}
			})
		})
	}
}

// The question is sent every 5 s while the answers are good, twice a second while they are not, and at once when
// somebody asks for it.
func TestHowOftenModelsAreListed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ls listings
		s := watch(t, engine.ScraperConfig{Client: clientOf(vllmAt(t)), Dialect: engine.DialectVLLM, OnListing: ls.add})
		count := func(what string, after time.Duration, want int) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			if got := len(ls.take()); got != want {
				t.Errorf("%s: %d listings, want %d", what, got, want)
			}
		}
		count("while it answers", 20*time.Second, 5)
		s.Look()
		count("asked to look", 0, 1)
		count("the next one is 5 s later", 4999*time.Millisecond, 0)
		count("then", time.Millisecond, 1)
		ls.judge(true)
		s.Look()
		count("its answers are not good", 2250*time.Millisecond, 5)
		ls.judge(false)
		count("they are again", 5250*time.Millisecond, 2)
	})
}

// An answer that is under way may be older than the reason to look: another question follows it. An engine that does not
// answer is given up after two seconds.
func TestLookWhileAQuestionIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := vllmAt(t)
		e.set(pages{"/v1/models": "-"})
		var ls listings
		s := watch(t, engine.ScraperConfig{Client: clientOf(e), Dialect: engine.DialectVLLM, OnListing: ls.add})
		begun := time.Now()
		time.Sleep(time.Second)
		s.Look()
		e.set(nil)
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		got := ls.take()
		if len(got) != 2 {
			t.Fatalf("%d listings, want the one that timed out and the next", len(got))
		}
		if got[0].Err == nil || got[0].Status != 0 || !got[0].Asked.Equal(begun) {
			t.Errorf("the first: %+v", got[0])
		}
		if got[1].Err != nil || !slices.Equal(got[1].Models, []string{"m"}) || got[1].Asked.Sub(begun) != 2*time.Second {
			t.Errorf("the second, asked after %v: %+v", got[1].Asked.Sub(begun), got[1])
		}
	})
}

// An engine that was frozen or busy for a while is listed again soon after; one whose list never comes is asked seldom.
func TestListAfterASilence(t *testing.T) {
	for _, silent := range []time.Duration{time.Second, 5 * time.Second, 12 * time.Second, 30 * time.Second} {
		t.Run(silent.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := vllmAt(t)
				var ls listings
				watch(t, engine.ScraperConfig{Client: clientOf(e), Dialect: engine.DialectVLLM, OnListing: ls.add})
				time.Sleep(20*time.Second + 100*time.Millisecond)
				e.set(pages{"/v1/models": "-", "/health": "-", "/metrics": "-"})
				time.Sleep(5 * time.Second) // a question is under way or over
				time.Sleep(silent)
				e.set(nil)
				ls.take()
				soon := 3*time.Second + silent/2
				time.Sleep(soon)
				synctest.Wait()
				got := ls.take()
				if len(got) == 0 || got[len(got)-1].Err != nil {
					t.Errorf("%v after it answers again: %+v", soon, got)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		e := vllmAt(t)
		e.set(pages{"/v1/models": "-"})
		var ls listings
		watch(t, engine.ScraperConfig{Client: clientOf(e), Dialect: engine.DialectVLLM, OnListing: ls.add})
		time.Sleep(5 * time.Minute)
		if n := len(ls.take()); n < 8 || n > 16 {
			t.Errorf("the list that never comes was asked for %d times in five minutes, for 2 s each", n)
		}
	})
}

// Scrapes go on while the question for the models has no answer.
func TestListingDelaysNoScrape(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := vllmAt(t)
		e.set(pages{"/v1/models": "-"})
		var ls listings
		s := watch(t, engine.ScraperConfig{Client: clientOf(e), Dialect: engine.DialectTGI, OnListing: ls.add})
		time.Sleep(1750 * time.Millisecond)
		if h := e.count("/health"); h != 4 || !s.Latest().Healthy {
			t.Errorf("asked %d times for its health, want 4", h)
		}
	})
}

func TestListingSendsTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"data":[{"id":%q}]}`, r.Header.Get("Authorization"))
		})
		var ls listings
		watch(t, engine.ScraperConfig{Client: clientOf(h), Dialect: engine.DialectVLLM, APIKey: "secret", OnListing: ls.add})
		synctest.Wait()
		if got := ls.take(); len(got) != 1 || !slices.Equal(got[0].Models, []string{"Bearer secret"}) {
			t.Errorf("got %+v", got)
		}
	})
}
