package api_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/testenv"
)

// TestFaultsOfRecordedAnswers decides about the errors of real engines: whose fault each is, in an error answer or in a
// stream that has begun.
func TestFaultsOfRecordedAnswers(t *testing.T) {
	names := map[api.Fault]string{api.FaultRequest: "request", api.FaultEngine: "engine", api.FaultBusy: "busy", api.FaultSetup: "setup", api.FaultMisfit: "misfit"}
	for _, r := range testenv.Recordings(t, "../engine/testdata/answers") {
		for _, a := range r.Answers {
			if a.Fault == "" {
				continue
			}
			status, body := a.Status, []byte(a.Body)
			if status == http.StatusOK {
				status, body = errorIn(a)
			}
			if got := names[api.FaultOf(status, body)]; got != a.Fault {
				t.Errorf("%s, %s: got %q, want %q: %d %s", r.Engine, a.Name, got, a.Fault, status, body)
			}
		}
	}
}

// errorIn is the error that a stream of status 200 turns out to be.
func errorIn(a testenv.Answer) (status int, text []byte) {
	var in api.Inspector
	in.Begin(a.Path, &http.Response{StatusCode: a.Status, Header: http.Header{"Content-Type": {a.Type}}})
	in.Observe([]byte(strings.TrimRight(a.Body, "\n") + "\n\n"))
	in.Broken()
	_, status, text = in.NoAnswer()
	return status, text
}
