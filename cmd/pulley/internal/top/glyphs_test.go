package top

import (
	"testing"
)

func TestGlyphs(t *testing.T) {
	tests := []struct {
		env  map[string]string
		want glyphs
	}{
		{nil, asciiGlyphs},
		{map[string]string{"LANG": "de_DE.UTF-8"}, unicodeGlyphs},
		{map[string]string{"LANG": "C.utf8"}, unicodeGlyphs},
		{map[string]string{"LANG": "de_DE.UTF-8", "LC_ALL": "C"}, asciiGlyphs},
		{map[string]string{"LC_CTYPE": "en_US.UTF-8", "LANG": "C"}, unicodeGlyphs},
	}
	for _, tt := range tests {
		if got := glyphsFor(func(name string) string { return tt.env[name] }); got != tt.want {
			t.Errorf("%v: %+v", tt.env, got)
		}
	}
	for _, tt := range []struct {
		n, most int
		want    string
	}{{0, 8, ".... 0/8"}, {1, 8, "#... 1/8"}, {4, 8, "##.. 4/8"}, {8, 8, "#### 8/8"}, {9, 8, "#### 9/8"}, {0, 0, ".... 0/0"}} {
		if got := asciiGlyphs.bar(tt.n, tt.most, 4); got != tt.want {
			t.Errorf("bar of %d/%d: %q, want %q", tt.n, tt.most, got, tt.want)
		}
	}
}

func TestLatency(t *testing.T) {
	for ms, want := range map[int64]string{0: "0ms", 7: "7ms", 999: "999ms", 1000: "1.00s", 9994: "9.99s", 9996: "10.0s", 61_250: "61.2s", 150_000: "2m30s"} {
		if got := latency(ms); got != want {
			t.Errorf("%d: got %q, want %q", ms, got, want)
		}
	}
}

func TestPerSecond(t *testing.T) {
	for x, want := range map[float64]string{0: "0.0", 0.25: "0.2", 9.96: "10", 123.4: "123", 9999: "9999", 12_345: "12k", 1.25e6: "1.2M"} {
		if got := perSecond(x); got != want {
			t.Errorf("%v: %q, want %q", x, got, want)
		}
	}
}
