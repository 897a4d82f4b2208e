package ops

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// shiftReports receives the reports of gateways about the two sides of a shift.
type shiftReports struct {
	model string
	store *policystore.Store
	sub   *nats.Subscription
	last  map[string]subjects.ShiftReport // the last report of each gateway
}

// followReports subscribes to the reports about the shift of a model.
func followReports(s *cli.Session, model string) (*shiftReports, error) {
	store, err := fleet.OpenStore(s.Context(), s.NC)
	if err != nil {
		return nil, err
	}
	sub, err := s.NC.SubscribeSync(subjects.ShiftReports)
	if err != nil {
		return nil, err
	}
	return &shiftReports{model: model, store: store, sub: sub, last: make(map[string]subjects.ShiftReport)}, nil
}

// read returns the progress of the shift. While it is running, read first collects
// reports for some time.
func (l *shiftReports) read(ctx context.Context, within time.Duration) (shiftView, error) {
	v, err := l.store.Load(ctx)
	if err != nil {
		return shiftView{}, fleet.ExplainDamage(err)
	}
	r, ok := v.Policy.Routes[l.model]
	if !ok {
		return shiftView{}, cli.NoSuch("route", l.model, slices.Sorted(maps.Keys(v.Policy.Routes)))
	}
	if r.Shift == nil {
		return shiftView{}, noShift(l.model, r)
	}
	if r.Shift.State == policy.ShiftRunning {
		waiting, cancel := context.WithTimeout(ctx, within)
		defer cancel()
		for {
			m, err := l.sub.NextMsgWithContext(waiting)
			if err != nil {
				break
			}
			var report subjects.ShiftReport
			if subjects.Unmarshal(m.Data, &report) == nil {
				l.last[report.Gateway] = report
			}
		}
		if ctx.Err() != nil {
			return shiftView{}, context.Cause(ctx)
		}
	}
	view := shiftView{model: l.model, route: r, share: shareOf(r)}
	for _, report := range l.last {
		if !report.Since[l.model].Equal(r.Shift.Since) {
			continue
		}
		for pool, side := range report.Routes[l.model] {
			if pool == r.Shift.To {
				view.canary.Merge(side)
			} else {
				view.stable.Merge(side)
			}
		}
	}
	return view, nil
}

// shiftView is the progress of a shift.
type shiftView struct {
	model          string
	route          policy.Route
	share          float64 // percentage of requests that the canary gets
	canary, stable policy.Side
}

func (v shiftView) view() cli.View {
	value := struct {
		Model  string       `json:"model"`
		Route  policy.Route `json:"route"`
		Canary sideLine     `json:"canary"`
		Stable sideLine     `json:"stable"`
	}{v.model, v.route, lineOf(v.share, v.canary), lineOf(100-v.share, v.stable)}
	return cli.View{Value: value, Print: v.print}
}

func (v shiftView) print(p *term.Page) {
	s := v.route.Shift
	state, when := "running", "step since"
	if s.State != policy.ShiftRunning {
		state, when = string(s.State), "ended"
	}
	p.Fields(
		term.KV("route", v.model, term.Bold),
		term.KV("shift", fmt.Sprintf("to %s, %s every %s", s.To, term.Percent(s.By), durationOr(s.Every))),
		term.KV("state", state, fleet.StateStyle(state)),
		term.KV("reason", s.Reason),
		term.KV(when, fmt.Sprintf("%s, %s ago", term.Clock(s.Since), term.Ago(s.Since))),
		term.KV("now to", targets(v.route.To)),
		term.KV("before", targets(s.Before)),
	)
	if s.State != policy.ShiftRunning {
		return
	}
	p.Line("")
	t := term.Table{Columns: []term.Column{term.Fixed("SIDE"), term.Number("SHARE"), term.Number("ANSWERS"), term.Number("ERRORS"),
		term.Number("TTFT P50"), term.Number("TTFT P95"), term.Number("E2E P50"), term.Number("E2E P95")}}
	row := func(name string, share float64, side policy.Side) {
		t.Row(name, term.Percent(share), fmt.Sprintf("%d/%d", side.Answers(), sampleOf(s)), errorsOf(side),
			quantile(side, policy.TTFT, 0.5), quantile(side, policy.TTFT, 0.95), quantile(side, policy.E2E, 0.5), quantile(side, policy.E2E, 0.95))
	}
	row("canary", v.share, v.canary)
	row("stable", 100-v.share, v.stable)
	p.Table(t)
	if len(s.Abort) == 0 {
		return
	}
	p.Heading("abort if")
	var list []term.Field
	for _, c := range s.Abort {
		test, err := policy.ParseCondition(string(c))
		if err != nil {
			continue
		}
		f := term.KV(string(c), "not enough answers yet", term.Dim)
		if fails, why := test.Fails(v.canary, v.stable); why != "" {
			f.Value, f.Style = why, map[bool]term.Style{true: term.Red, false: term.Green}[fails]
		}
		list = append(list, f)
	}
	p.Fields(list...)
}

// sideLine is one side of a shift, the canary or the stable one, as JSON.
type sideLine struct {
	Share   float64 `json:"share"` // percent
	Answers int     `json:"answers"`
	Errors  int     `json:"errors"`
	TTFTp50 int64   `json:"ttft_p50_ms,omitempty"`
	TTFTp95 int64   `json:"ttft_p95_ms,omitempty"`
	E2Ep50  int64   `json:"e2e_p50_ms,omitempty"`
	E2Ep95  int64   `json:"e2e_p95_ms,omitempty"`
}

func lineOf(share float64, s policy.Side) sideLine {
	ms := func(m policy.Metric, q float64) int64 {
		d, _ := s.Quantile(m, q)
		return d.Milliseconds()
	}
	return sideLine{share, s.Answers(), s.Errors(), ms(policy.TTFT, 0.5), ms(policy.TTFT, 0.95), ms(policy.E2E, 0.5), ms(policy.E2E, 0.95)}
}

func sampleOf(s *policy.Shift) int { return cmp.Or(s.MinSample, policy.DefaultMinSample) }

func errorsOf(s policy.Side) string {
	if s.Answers() == 0 {
		return ""
	}
	return term.Percent(100 * float64(s.Errors()) / float64(s.Answers()))
}

func quantile(s policy.Side, m policy.Metric, q float64) string {
	d, ok := s.Quantile(m, q)
	switch {
	case !ok:
		return ""
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// followShift shows the progress of a shift until it ends: on a terminal as a page that
// is refreshed, elsewhere as a line for each step.
func followShift(s *cli.Session, model string) error {
	l, err := followReports(s, model)
	if err != nil {
		return err
	}
	defer l.sub.Unsubscribe()
	out := s.Cmd.OutOrStdout()
	last := ""
	for {
		v, err := l.read(s.Context(), cli.WatchEvery)
		if s.Context().Err() != nil {
			return nil // the shift itself continues
		}
		if err != nil {
			return err
		}
		t := term.Of(out)
		line := fmt.Sprintf("%s of %s to %s", term.Percent(v.share), model, v.route.Shift.To)
		switch {
		case t.Width > 0:
			p := term.Page{Terminal: t}
			v.print(&p)
			out.Write(term.Frame(p.Bytes(), "pulley "+s.CommandLine(), t))
		case line != last:
			fmt.Fprintf(out, "%s  %s\n", time.Now().Format("15:04:05"), term.Printable(line))
		}
		last = line
		switch shift := v.route.Shift; shift.State {
		case policy.ShiftDone:
			if t.Width == 0 {
				io.WriteString(out, "done\n")
			}
			return nil
		case policy.ShiftAborted:
			return fmt.Errorf("shift of %s aborted: %s", model, shift.Reason)
		}
	}
}
