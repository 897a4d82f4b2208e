package cli

import (
	"testing"
)

func TestNearest(t *testing.T) {
	tests := []struct{ word, want string }{
		{"lisen", "listen"}, {"LISTEN", "listen"}, {"store_dir", "store-dir"}, {"zzzzzz", ""},
	}
	for _, tt := range tests {
		if got := nearest(tt.word, []string{"store-dir", "listen", "routes"}); got != tt.want {
			t.Errorf("nearest(%q) = %q, want %q", tt.word, got, tt.want)
		}
	}
}
