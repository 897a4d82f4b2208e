package policy_test

import (
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

func TestBodyPace(t *testing.T) {
	const kib = 1 << 10
	for about, c := range map[string]struct {
		first int64         // comes at once
		every time.Duration // between the other pieces
		piece int64
		size  int64
		ends  time.Duration // 0: the body comes as a whole
		says  string
	}{
		"one byte each 4 s":              {1, 4 * time.Second, 1, 64 << 20, 5 * time.Second, "less than 1024 bytes a second"},
		"nothing":                        {0, time.Hour, 1, 10, 5 * time.Second, "less than 1024"},
		"one byte a second":              {0, time.Second, 1, 64 << 20, 5 * time.Second, "less than 1024"},
		"half of the rate":               {0, time.Second, kib / 2, 64 << 20, 10 * time.Second, "less than 1024"},
		"just the rate":                  {0, time.Second, kib, 64 << 20, 64 * time.Second, "longer than 1m0s"},
		"just the rate, and small":       {0, time.Second, kib, 50 * kib, 0, ""},
		"slower, but small":              {0, 100 * time.Millisecond, 10, 490, 0, ""},
		"16 KiB a second":                {0, time.Second, 16 * kib, 64 << 20, 0, ""},
		"8 KiB a second, 700 KiB":        {0, time.Second, 8 * kib, 700 * kib, 0, ""},
		"8 KiB a second, 8 MiB":          {0, time.Second, 8 * kib, 8 << 20, 120 * time.Second, "longer than 1m0s"},
		"a piece of 1 MiB in 31 s":       {1 << 20, 31 * time.Second, 1 << 20, 64 << 20, 30 * time.Second, "no byte of the body came for 30s"},
		"a fast beginning, then a pause": {60 * kib, 31 * time.Second, kib, 64 << 20, 30 * time.Second, "no byte"},
		"a fast beginning, then slow":    {20 * kib, 10 * time.Second, 1, 64 << 20, 25 * time.Second, "less than 1024"},
	} {
		p := policy.BodyPace{Rate: kib, Total: time.Minute}
		came, last, ended, broken := c.first, time.Duration(0), time.Duration(0), ""
		for at := c.every; came < c.size; at += c.every {
			if until := p.Until(came, last); at > until {
				ended, broken = until, p.Broken(came, last)
				break
			}
			last, came = at, came+c.piece
		}
		if ended.Round(time.Second) != c.ends || !strings.Contains(broken, c.says) {
			t.Errorf("%s: ended after %v: %q, want %v %q", about, ended, broken, c.ends, c.says)
		}
	}
}
