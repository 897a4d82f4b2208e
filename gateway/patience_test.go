package gateway

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/api"
)

func TestPatience(t *testing.T) {
	const deadline, limit = 10 * time.Minute, 24 * time.Hour
	for about, c := range map[string]struct {
		header         []string
		stream         bool
		silence, total time.Duration
	}{
		"nothing":                        {nil, false, deadline, 0},
		"nothing, a stream":              {nil, true, deadline, 0},
		"Python":                         {[]string{"X-Stainless-Read-Timeout", "600.0"}, true, 600*time.Second + sdkGrace, 0},
		"Python, not a stream":           {[]string{"X-Stainless-Read-Timeout", "600.0"}, false, 600*time.Second + sdkGrace, 600*time.Second + sdkGrace},
		"Node":                           {[]string{"X-Stainless-Timeout", "30"}, true, 30*time.Second + sdkGrace, 0},
		"Node, not a stream":             {[]string{"X-Stainless-Timeout", "30"}, false, 30*time.Second + sdkGrace, 30*time.Second + sdkGrace},
		"both, the read timeout counts":  {[]string{"X-Stainless-Timeout", "30", "X-Stainless-Read-Timeout", "5"}, true, 5*time.Second + sdkGrace, 0},
		"longer than the tier's":         {[]string{"X-Stainless-Timeout", "3600"}, true, time.Hour + sdkGrace, 0},
		"a total":                        {[]string{"X-Request-Timeout", "1m30s"}, true, 90 * time.Second, 90 * time.Second},
		"a total longer than the tier's": {[]string{"X-Request-Timeout", "3600"}, false, time.Hour, time.Hour},
		"a total and a read timeout":     {[]string{"X-Request-Timeout", "60", "X-Stainless-Read-Timeout", "5"}, true, 5*time.Second + sdkGrace, time.Minute},
		"the shorter one":                {[]string{"X-Request-Timeout", "60", "X-Stainless-Read-Timeout", "5"}, false, 5*time.Second + sdkGrace, 5*time.Second + sdkGrace},
		"the shorter total":              {[]string{"X-Request-Timeout", "4", "X-Stainless-Read-Timeout", "600"}, true, 4 * time.Second, 4 * time.Second},
		"above the limit":                {[]string{"X-Request-Timeout", "999999", "X-Stainless-Timeout", "999999"}, true, limit, limit},
		"words are ignored":              {[]string{"X-Stainless-Read-Timeout", "NOT_GIVEN", "X-Stainless-Timeout", "7"}, true, 7*time.Second + sdkGrace, 0},
		"nothing is ignored":             {[]string{"X-Stainless-Read-Timeout", "0", "X-Stainless-Timeout", "-1"}, true, deadline, 0},
		"NaN is ignored":                 {[]string{"X-Stainless-Read-Timeout", "NaN", "X-Stainless-Timeout", "inf"}, false, deadline, 0},
	} {
		t.Run(about, func(t *testing.T) {
			h := make(http.Header)
			for i := 0; i+1 < len(c.header); i += 2 {
				h.Set(c.header[i], c.header[i+1])
			}
			p, err := patienceOf(h, c.stream, deadline, limit)
			if err != nil || p.silence != c.silence || p.total != c.total {
				t.Fatalf("got %+v, %v, want silence %v, total %v", p, err, c.silence, c.total)
			}
			arrived := time.Now()
			for _, heard := range []time.Duration{0, time.Second, time.Minute, time.Hour} {
				want := heard + c.silence
				if c.total > 0 {
					want = min(want, c.total)
				}
				if got := p.until(arrived, arrived.Add(heard)).Sub(arrived); got != want {
					t.Errorf("a byte came after %v: until %v, want %v", heard, got, want)
				}
			}
		})
	}
	p, _ := patienceOf(http.Header{"X-Stainless-Timeout": {"5"}, "X-Request-Timeout": {"60"}}, true, deadline, limit)
	arrived := time.Now()
	for after, says := range map[time.Duration]string{20 * time.Second: "X-Stainless-Timeout", time.Minute: "deadline of 1m0s"} {
		if e := p.late(arrived, arrived.Add(after), "it was running"); e.Status != 504 || e.Code != "deadline_exceeded" || !strings.Contains(e.Message, says) {
			t.Errorf("after %v: got %v, want %q in it", after, e, says)
		}
	}
	_, err := patienceOf(http.Header{"X-Request-Timeout": {"soon"}}, true, deadline, limit)
	if e := api.AsError(err); err == nil || e.Status != 400 {
		t.Errorf("got %v, want a 400", err)
	}
}
