package worker

import (
	"testing"
	"time"
)

// Failures of different requests, or of requests that others answer, pause the worker for their pool and no other.
func TestPresencePausesAPool(t *testing.T) {
	now := time.Now()
	at := func(ms int) time.Time { return now.Add(time.Duration(ms) * time.Millisecond) }
	own := func(request uint64) failure { return failure{pool: "a", request: request, reason: "500"} }
	for what, test := range map[string]struct {
		failures []failure
		pauses   bool
	}{
		"two requests fail":                           {[]failure{own(1), own(2)}, false},
		"three requests fail":                         {[]failure{own(1), own(2), own(3)}, true},
		"one request fails again and again":           {[]failure{own(1), own(1), own(1), own(1), own(1), own(1)}, false},
		"one that others answer":                      {[]failure{own(1), {pool: "a", blamed: true}}, false},
		"one request that others answer twice":        {[]failure{own(1), {pool: "a", blamed: true}, own(1), {pool: "a", blamed: true}}, true},
		"the engine does not have the model":          {[]failure{{pool: "a", setup: true, reason: "404"}}, true},
		"requests of several pools fail, one of each": {[]failure{own(1), {pool: "b", request: 2}, {pool: "c", request: 3}}, false},
	} {
		p := newPresence(0)
		began := 0
		for _, f := range test.failures {
			if p.onFailure(f, now) {
				began++
			}
		}
		if shut := p.shut(now); shut["a"] != test.pauses || shut["b"] || (began == 1) != test.pauses {
			t.Errorf("%s: shut %v, and %d pauses began", what, shut, began)
		}
		if why := p.failures()["a"]; test.pauses != (why != "") {
			t.Errorf("%s: reason %q", what, why)
		}
	}
	p := newPresence(0)
	for n := range uint64(3) {
		p.onFailure(own(n), now)
	}
	if shut := p.shut(at(499)); !shut["a"] {
		t.Error("the pause is over too soon")
	}
	if shut := p.shut(at(500)); shut != nil {
		t.Errorf("after the pause %v are shut", shut)
	}
	if p.begin("a"); !p.shut(at(500))["a"] {
		t.Error("a second request may begin while the first one tries the engine")
	}
	p.endTrial("a")
	if p.onFailure(own(9), at(500)); !p.shut(at(1499))["a"] || p.shut(at(1500)) != nil {
		t.Error("the second pause is not twice as long")
	}
	if p.onFailure(own(9), at(1600)); !p.onAnswer("a") || p.shut(at(1600)) != nil || p.failures() != nil {
		t.Error("an answer does not end the pause")
	}
	if p.onAnswer("a") {
		t.Error("a pause ends twice")
	}
}
