package worker

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/subjects"
)

// A worker is down until its engine has listed its models and says nothing else.
func TestPresenceFollowsTheEngine(t *testing.T) {
	p, refused := newPresence(0), errors.New("connection refused")
	for _, step := range []struct {
		what  string
		do    func(p *presence) healthChange
		want  healthChange
		state subjects.State
		why   string
	}{
		{"its report comes first", func(p *presence) healthChange { return p.onStatus("", false) }, healthChange{}, subjects.Down, "not asked yet"},
		{"it lists its models", func(p *presence) healthChange { return p.onListing(nil, false) }, healthChange{up: true}, subjects.Ready, ""},
		{"again", func(p *presence) healthChange { return p.onListing(nil, false) }, healthChange{}, subjects.Ready, ""},
		{"it sleeps", func(p *presence) healthChange { return p.onStatus("it sleeps", false) }, healthChange{reason: "it sleeps", down: true}, subjects.Down, "it sleeps"},
		{"and does not answer", func(p *presence) healthChange { return p.onListing(refused, false) }, healthChange{reason: "connection refused"}, subjects.Down, "connection refused"},
		{"still", func(p *presence) healthChange { return p.onListing(refused, false) }, healthChange{}, subjects.Down, "connection refused"},
		{"it answers, and sleeps", func(p *presence) healthChange { return p.onListing(nil, false) }, healthChange{reason: "it sleeps"}, subjects.Down, "it sleeps"},
		{"it wakes up", func(p *presence) healthChange { return p.onStatus("", false) }, healthChange{up: true}, subjects.Ready, ""},
		{"the worker drains", func(p *presence) healthChange { p.set(subjects.Draining, "ordered"); return healthChange{} }, healthChange{}, subjects.Draining, "ordered"},
		{"its engine dies", func(p *presence) healthChange { return p.onListing(refused, false) }, healthChange{}, subjects.Draining, "ordered"},
		{"it leaves", func(p *presence) healthChange { p.set(subjects.Left, ""); return healthChange{} }, healthChange{}, subjects.Left, ""},
		{"nothing follows", func(p *presence) healthChange { p.set(subjects.Ready, ""); return p.onListing(nil, false) }, healthChange{}, subjects.Left, ""},
	} {
		if got := step.do(p); got != step.want {
			t.Errorf("%s: %+v, want %+v", step.what, got, step.want)
		}
		if state, why := p.report(""); state != step.state || why != step.why {
			t.Errorf("%s: %s %q, want %s %q", step.what, state, why, step.state, step.why)
		}
	}
}

// A refusal of the engine pauses the worker.
func TestPresencePauses(t *testing.T) {
	now := time.Now()
	open := func(p *presence, after time.Duration) bool {
		open, _ := p.open(now.Add(after))
		return open
	}
	ready := func() *presence {
		p := newPresence(0)
		p.onStatus("", false)
		p.onListing(nil, false)
		return p
	}
	p := ready()
	p.onRefusal(2*time.Second, "refused: 429", now)
	if open(p, 1999*time.Millisecond) || !open(p, 2*time.Second) {
		t.Error("it does not pause as long as its engine asked")
	}
	p = ready()
	p.onRefusal(0, "refused: 429", now)
	if state, why := p.report(""); state != subjects.Paused || why != "refused: 429" {
		t.Errorf("%s %q", state, why)
	}
	if state, why := p.report("XID 79"); state != subjects.Fenced || why != "XID 79" {
		t.Errorf("with a fence: %s %q", state, why)
	}
	p.onSuccess(now.Add(time.Millisecond))
	if !open(p, time.Millisecond) {
		t.Error("an answer does not end the pause")
	}
	p.follow(true, 3)
	if state, _ := p.report("XID 79"); state != subjects.Cordoned {
		t.Errorf("cordoned: %s", state)
	}
	if open, weight := p.open(now.Add(time.Hour)); open || weight != 3 {
		t.Errorf("cordoned: open %v, weight %v", open, weight)
	}
}

// A gateway counts as gone after a silence in which it could have been heard.
func TestPresenceOfGateways(t *testing.T) {
	now := time.Now()
	at := func(d time.Duration) time.Time { return now.Add(d) }
	p := newPresence(0)
	lives := func(t time.Time) bool { return !slices.Contains(p.gone(t), "g") }
	p.onReconnect(now.Add(-time.Hour))
	p.onRequestOf("g", now)
	p.onRequestOf("g", at(subjects.GatewayGone)) // its request is no sign of life
	if !lives(at(subjects.GatewayGone-1)) || lives(at(subjects.GatewayGone)) {
		t.Error("its silence does not count from its first request")
	}
	p.onGateway("g", at(subjects.GatewayGone))
	if !lives(at(2*subjects.GatewayGone - 1)) {
		t.Error("a sign of life does not count")
	}
	p.onNoGateway("g", at(subjects.GatewayGone))
	p.onNoGateway("g", at(subjects.GatewayGone+noGatewayFor-1))
	if !lives(at(subjects.GatewayGone+noGatewayFor-1)) || lives(at(subjects.GatewayGone+noGatewayFor)) {
		t.Error("it is not gone when the broker has not known it for a while")
	}
	p.onGateway("g", at(subjects.GatewayGone+noGatewayFor))
	if !lives(at(subjects.GatewayGone + 2*noGatewayFor)) {
		t.Error("it is gone though it has come back")
	}
	p.onReconnect(at(3 * subjects.GatewayGone))
	p.onNoGateway("g", at(3*subjects.GatewayGone))
	if !lives(at(4*subjects.GatewayGone - 1)) {
		t.Error("it is gone at once after a reconnect")
	}
	p.onGateway("g", at(4*subjects.GatewayGone))
	p.onNoGateway("g", at(4*subjects.GatewayGone))
	if lives(at(4*subjects.GatewayGone + noGatewayFor)) {
		t.Error("long after a reconnect it is not gone when the broker does not know it")
	}
	p.onReconnect(at(5 * subjects.GatewayGone))
	p.onGateway("g", at(5*subjects.GatewayGone+1))
	p.onNoGateway("g", at(5*subjects.GatewayGone+2))
	if !lives(at(5*subjects.GatewayGone + 1 + noGatewayFor)) {
		t.Error("it is gone sooner because it was heard after a reconnect")
	}
	if lives(at(5*subjects.GatewayGone + 2 + noGatewayFor)) {
		t.Error("it was heard after a reconnect, and is not gone when the broker does not know it any more")
	}
	p.onGateway("g", at(subjects.GatewayGone+noGatewayFor))
	late := at(subjects.GatewayGone + noGatewayFor + gatewayForgotten + 1)
	if p.forgetGateways(map[string]*subjects.Alive{"g": nil}, late); len(p.gateways) != 0 {
		t.Error("it is remembered, and nothing runs for it")
	}
	p.onGateway("g", now)
	if p.forgetGateways(map[string]*subjects.Alive{"g": {}}, late); len(p.gateways) != 1 {
		t.Error("it is forgotten, and something runs for it")
	}
}

func TestModelsOfAListing(t *testing.T) {
	for what, test := range map[string]struct {
		cfg    Config
		l      engine.Listing
		models string
		err    string
	}{
		"its list":                         {Config{}, engine.Listing{Status: 200, Models: []string{"b", "", "a", "b"}}, "[a b]", ""},
		"an empty list":                    {Config{}, engine.Listing{Status: 200}, "[]", "GET /v1/models: no models"},
		"no list":                          {Config{}, engine.Listing{Status: 404, Err: errors.New("GET /v1/models: 404 Not Found")}, "[]", "GET /v1/models: 404 Not Found; if the engine has no such list, specify the models with model=NAME"},
		"no answer":                        {Config{}, engine.Listing{Err: errors.New("connection refused")}, "[]", "connection refused"},
		"something else":                   {Config{}, engine.Listing{Status: 200, Err: errors.New("GET /v1/models: invalid character")}, "[]", "GET /v1/models: invalid character"},
		"one pool for two":                 {Config{Pool: "p"}, engine.Listing{Status: 200, Models: []string{"a", "b"}}, "[]", `GET /v1/models: 2 models, but pool "p" takes one: specify it with model=NAME`},
		"one pool for one":                 {Config{Pool: "p"}, engine.Listing{Status: 200, Models: []string{"a"}}, "[a]", ""},
		"one pool, and adapters":           {Config{Pool: "p"}, engine.Listing{Status: 200, Models: []string{"lora", "a", "other"}, Facts: []engine.Facts{{Parent: "a"}, {}, {Parent: "a"}}}, "[a]", ""},
		"one pool, and names of one model": {Config{Pool: "p"}, engine.Listing{Status: 200, Models: []string{"b", "a", "c"}, Facts: []engine.Facts{{Root: "/m"}, {Root: "/m"}, {Root: "/l", Parent: "b"}}}, "[b]", ""},
		"one pool, and an adapter without its parent": {Config{Pool: "p"}, engine.Listing{Status: 200, Models: []string{"lora", "a"}, Facts: []engine.Facts{{Parent: "z"}, {}}}, "[]",
			`GET /v1/models: 2 models, but pool "p" takes one: specify it with model=NAME`},
		"one pool that had one of two": {Config{Pool: "p"}, engine.Listing{Status: 200, Models: []string{"had", "a"}}, "[had]", ""},
		"one pool that had another":    {Config{Pool: "p"}, engine.Listing{Status: 200, Models: []string{"a"}}, "[a]", ""},
		"no pool, and adapters":        {Config{}, engine.Listing{Status: 200, Models: []string{"a", "lora"}, Facts: []engine.Facts{{}, {Parent: "a"}}}, "[a lora]", ""},
		"a wrong key":                  {Config{Credentials: engine.Credentials{Key: "x"}, Models: []string{"m"}}, engine.Listing{Status: 401, Trouble: engine.TroubleCredentials, Err: errors.New("GET /v1/models: 401 Unauthorized")}, "[]", "GET /v1/models: 401 Unauthorized: the engine refuses the API key"},
		"a key without rights": {Config{Credentials: engine.Credentials{KeyFile: "/k"}}, engine.Listing{Status: 403, Trouble: engine.TroubleCredentials, Err: errors.New("GET /v1/models: 403 Forbidden")}, "[]",
			"GET /v1/models: 403 Forbidden: the engine refuses the API key in /k; if that holds for this list alone, specify the models with model=NAME"},
		"configured, and a list that nobody may read": {Config{Models: []string{"m"}}, engine.Listing{Status: 403, Trouble: engine.TroubleCredentials, Err: errors.New("403")}, "[m]", ""},
		"configured, and it lists":                    {Config{Models: []string{"m"}}, engine.Listing{Status: 200, Models: []string{"a"}}, "[m]", ""},
		"configured, and no list":                     {Config{Models: []string{"m"}}, engine.Listing{Status: 404, Err: errors.New("404")}, "[m]", ""},
		"configured, and broken":                      {Config{Models: []string{"m"}}, engine.Listing{Status: 500, Err: errors.New("500")}, "[]", "500"},
		"configured, and no answer":                   {Config{Models: []string{"m"}}, engine.Listing{Err: errors.New("refused")}, "[]", "refused"},
		"loading":                                     {Config{}, engine.Listing{Status: 503, Err: errors.New("GET /v1/models: 503 Service Unavailable: Loading model")}, "[]", "GET /v1/models: 503 Service Unavailable: Loading model"},
	} {
		models, err := modelsOf(test.cfg, test.l, "had")
		text := ""
		if err != nil {
			text = err.Error()
		}
		if got := fmt.Sprint(models); got != test.models || text != test.err {
			t.Errorf("%s: %s, %q; want %s, %q", what, got, text, test.models, test.err)
		}
	}
}

// A gateway that is heard, and that the broker says is not there, cannot be reached. That is said once.
func TestPresenceReachesGateways(t *testing.T) {
	for about, c := range map[string]struct {
		hidden func(reference int) bool // whether the broker answers that there is no such gateway
		says   int                      // after which Reference it is said; 0: never
		asks   int                      // how often the broker is asked
	}{
		"reached":                {func(int) bool { return false }, 0, 1},
		"hidden":                 {func(int) bool { return true }, reachAfter + 1, reachAfter},
		"once, as by a restart":  {func(n int) bool { return n == 1 }, 0, 2},
		"hidden after a moment":  {func(n int) bool { return n > 1 }, 0, 1},
		"hidden, and then there": {func(n int) bool { return n <= reachAfter-1 }, 0, reachAfter},
	} {
		p, now := newPresence(0), time.Now()
		p.onReconnect(now)
		says, asks := 0, 0
		for n := 1; n < 20; n++ {
			now = now.Add(subjects.ReferenceEvery)
			ask, unreachable := p.tryToReach("g")
			if unreachable {
				if says > 0 {
					t.Errorf("%s: said again", about)
				}
				says = n
			}
			p.onGateway("g", now)
			if ask {
				asks++
				if c.hidden(n) {
					p.onNoGateway("g", now)
				}
			}
		}
		if says != c.says || asks != c.asks {
			t.Errorf("%s: said after Reference %d, want %d; asked %d times, want %d", about, says, c.says, asks, c.asks)
		}
		if p.onReconnect(now); !func() bool { ask, _ := p.tryToReach("g"); return ask }() {
			t.Errorf("%s: not asked again after a reconnect", about)
		}
	}

	p, now := newPresence(0), time.Now()
	p.onReconnect(now)
	if p.hearsNobody(now.Add(lonelyAfter-1)) || !p.hearsNobody(now.Add(lonelyAfter)) || p.hearsNobody(now.Add(2*lonelyAfter)) {
		t.Error("it does not say once that nobody is heard")
	}
	p.onReconnect(now)
	p.onGateway("g", now.Add(lonelyAfter))
	if p.hearsNobody(now.Add(lonelyAfter + 1)) {
		t.Error("it says that nobody is heard, and a gateway is")
	}
}
