package chaos

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// A stream that its own client leaves in the middle of an event is not a wrong one; if it ends there as if it were whole, it is.
func TestPartOfAnEvent(t *testing.T) {
	const part = `data: {"choices":[{"del`
	for _, end := range []error{context.Canceled, io.ErrUnexpectedEOF} {
		r := &Request{ID: "r", Tokens: 3}
		if err := new(clients).readStream(r, io.MultiReader(strings.NewReader(part), iotest.ErrReader(end))); !errors.Is(err, end) || r.Outcome != "" {
			t.Errorf("%v: %v, outcome %q: %s", end, err, r.Outcome, r.Detail)
		}
	}
	r := &Request{ID: "r", Tokens: 3}
	if new(clients).readStream(r, strings.NewReader(part)); r.Outcome != Wrong {
		t.Errorf("outcome %q", r.Outcome)
	}
}
