package term

import (
	"strings"
	"testing"
)

// A frame is drawn in place: each line is cleared to its end, and nothing is left below.
func TestFrame(t *testing.T) {
	got := string(Frame([]byte("a\nb\nc\nd\n"), "pulley x", Terminal{Width: 40, Height: 5}))
	if !strings.HasPrefix(got, "\x1b[Hpulley x  ") || !strings.HasSuffix(got, "\x1b[K\na\x1b[K\nb\x1b[K\n… 2 more lines\x1b[K\n\x1b[J") {
		t.Errorf("screen %q", got)
	}
}
