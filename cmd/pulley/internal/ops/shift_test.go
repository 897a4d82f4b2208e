package ops

import (
	"encoding/json"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

func TestShift(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve("llama", "llama-next")
	s.answer()
	s.story(
		step{"route shift llama", 3, `pulley: no route "llama"; see 'pulley route ls'\n`},
		step{"route shift llama --every 1m", 2, `pulley: --every: needs --to, which starts a shift\nrun .*`},
		step{"route shift llama --to llama-next --abort-if p42>1s", 2, `pulley: --abort-if "p42>1s": the metric must be error_rate, .*`},
		step{"route shift llama --to llama", 4, `pulley: route llama: all requests already go to llama\n`},
		step{"route shift llama --to llama-next --by 25% --every 90s --abort-if error_rate>1% --abort-if p95_ttft>1.5x --min-sample 2", 0,
			`shift of llama to llama-next started: 25% every 1m30s, policy revision 1\n`},
		step{"route shift llama --to llama-next", 4, `pulley: route llama: a shift to llama-next is running; end it with 'pulley route abort llama' or 'pulley route promote llama'\n`},
		step{"route set llama --to llama", 4, `pulley: route llama: a shift to llama-next is running; end it with .*, or use --force\n`},
		step{"route shift llama --now", 0, `shift of llama 0 % → 25 % to llama-next, policy revision 2\n`},
		step{"route ls", 0, `MODEL  TO                         SHIFT
llama  llama 75%, llama-next 25%  running to llama-next, 25%\n`},
	)

	// Two gateways report the current step; a third reports an earlier one.
	since := s.policy().Routes["llama"].Shift.Since
	report := func(gateway string, since time.Time, canary, stable policy.Side) {
		b, err := json.Marshal(subjects.ShiftReport{Gateway: gateway, Since: map[string]time.Time{"llama": since},
			Routes: map[string]map[string]policy.Side{"llama": {"llama-next": canary, "llama": stable}}})
		if err != nil {
			t.Fatal(err)
		}
		s.nc.Publish(subjects.ShiftReports, b)
	}
	var canary, stable policy.Side
	for range 2 {
		canary.Observe(true, 100*time.Millisecond, time.Second)
		stable.Observe(true, 50*time.Millisecond, time.Second)
	}
	go func() {
		for range 20 {
			report("a", since, canary, stable)
			report("b", since, canary, stable)
			report("c", since.Add(-time.Second), canary, stable)
			time.Sleep(50 * time.Millisecond)
		}
	}()
	out := s.ok("route shift llama")
	for _, want := range []string{
		`shift +to llama-next, 25% every 1m30s\n`, `state +running\n`,
		`canary +25% +4/2 +0% +\d+ ms +\d+ ms +1\.0 s +1\.0 s\n`, `stable +75% +4/2 +0%`,
		`error_rate>1% +error_rate 0\.0 % \(0 of 4\) ≤ 1 %\n`, `p95_ttft>1\.5x +p95_ttft \d+ ms > 1\.5× \d+ ms\n`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("route shift llama:\n%s\nwant %s", out, want)
		}
	}

	s.story(
		step{"route abort llama --reason latin", 0, `shift of llama aborted at 25 % to llama-next: latin, policy revision 3\n`},
		step{"route abort llama", 4, `pulley: route llama: no shift is running; the last one, to llama-next, is aborted\n`},
		step{"route shift llama", 0, `route +llama\nshift .*state +aborted\nreason +latin\nended .*now to +llama\nbefore +llama\n`},
		step{"route shift llama --follow", 1, `\d\d:\d\d:\d\d  0% of llama to llama-next\npulley: shift of llama aborted: latin\n`},
		step{"route shift llama --to llama-next --by 50", 0, `shift .* started: 50% every 2m, policy revision 4\n`},
		step{"route promote llama", 0, `shift of llama promoted at 0 %: all requests to llama-next, policy revision 5\n`},
		step{"route shift llama --follow", 0, `\d\d:\d\d:\d\d  100% of llama to llama-next\ndone\n`},
		step{"route ls", 0, `MODEL  TO          SHIFT\nllama  llama-next  done\n`},
	)
}

func TestShiftOfAModelUnderAWildcard(t *testing.T) {
	s := newSite(t)
	s.serve("llama", "llama-next")
	s.ok("route set gpt-* --to llama --restore-model")
	s.story(step{"route shift gpt-4o --to llama-next", 0,
		`shift of gpt-4o to llama-next started: .*\nwarning: route gpt-\* no longer applies to gpt-4o, which now has its own route\nwarning: no gateway is running: the shift starts when one does\n`})
	r := s.policy().Routes["gpt-4o"]
	if targets(r.To) != "llama" || !r.RestoreModel || r.Shift == nil {
		t.Errorf("route %+v, want that of the wildcard, and a shift", r)
	}
}

func TestFollowShowsEachStep(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve("llama", "llama-next")
	s.ok("route shift llama --to llama-next --by 50")
	var stdout clitest.Buffer
	ended := make(chan int, 1)
	go func() {
		ended <- cli.Execute(t.Context(), testRoot(), []string{"route", "shift", "llama", "--follow", "--nats", s.url}, &stdout, io.Discard)
	}()
	stdout.WaitFor(t, "  0% of llama")
	s.ok("route shift llama --now")
	stdout.WaitFor(t, "  50% of llama")
	s.ok("route promote llama")
	if code := <-ended; code != 0 || !strings.HasSuffix(stdout.String(), "done\n") {
		t.Errorf("exit code %d, %s", code, &stdout)
	}
}
