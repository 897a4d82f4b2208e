package term

import (
	"math"
	"testing"
	"time"
)

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0.0s", 1540 * time.Millisecond: "1.5s", 59 * time.Second: "59s", 61 * time.Second: "1m01s", 3 * time.Hour: "3h00m", 50 * time.Hour: "2d", -time.Minute: "-1m00s", math.MinInt64: "-106751d",
	} {
		if got := Age(d); got != want {
			t.Errorf("age(%v) = %s, want %s", d, got, want)
		}
	}
}

func TestPrintable(t *testing.T) {
	for s, want := range map[string]string{
		"org/llama:7b": "org/llama:7b", "mit \"Zitat\" é": "mit \"Zitat\" é", "a\x1b[31mb\n": `a\x1b[31mb\n`, "\"\x00\\": `"\x00\\`, "\xff": `\xff`,
	} {
		if got := Printable(s); got != want {
			t.Errorf("printable(%q) = %q, want %q", s, got, want)
		}
	}
	if got, want := PrintableLines("a\r\n\tb\x1b[2J"), "a\n    b\\x1b[2J"; got != want {
		t.Errorf("printableLines = %q, want %q", got, want)
	}
}
