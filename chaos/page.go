package chaos

import (
	"cmp"
	"fmt"
	"html/template"
	"io"
	"strings"
)

// WritePage writes one HTML page that needs nothing else: the table by fault, the violations, and a timeline with what each
// engine ran, the answers in each second, what broke, and what struck when.
func WritePage(out io.Writer, h *History, r *Report) error {
	return page.Execute(out, struct {
		*Report
		History  *History
		Timeline template.HTML
		Rules    map[Rule]int
	}{r, h, newTimeline(h, r).svg(), r.count()})
}

func (r *Report) count() map[Rule]int {
	n := make(map[Rule]int)
	for _, v := range r.Violations {
		n[v.Rule]++
	}
	return n
}

// Refused, Broken and Bad count requests by how they ended.
func (r Row) Refused() int { return r.Outcomes[Refused] }
func (r Row) Broken() int  { return r.Outcomes[Broken] }
func (r Row) Bad() int     { return r.Outcomes.bad() }

// timeline draws a history. Times are in pixels to the right.
type timeline struct {
	h     *History
	r     *Report
	scale float64 // pixels for a second
	out   strings.Builder
}

const (
	left     = 90 // of the names of lanes
	laneH    = 26
	answersH = 70
)

func newTimeline(h *History, r *Report) *timeline {
	return &timeline{h: h, r: r, scale: min(14, 12000/max(float64(h.Ended), 1))}
}

func (t *timeline) x(at Seconds) float64 { return left + float64(at)*t.scale }

func (t *timeline) svg() template.HTML {
	lanes := len(t.h.Engines)
	faultsY, answersY := 20, 20+3*laneH
	marksY := answersY + answersH + 10
	enginesY := marksY + 2*laneH
	height := enginesY + lanes*(laneH+6) + 30
	width := t.x(t.h.Ended) + 20
	fmt.Fprintf(&t.out, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%d" role="img" aria-label="timeline">`, width, height)
	t.grid(height)
	t.faults(faultsY, height)
	t.answers(answersY)
	t.marks(marksY)
	for i, e := range t.h.Engines {
		t.engine(e, enginesY+i*(laneH+6))
	}
	t.out.WriteString("</svg>")
	return template.HTML(t.out.String())
}

func (t *timeline) grid(height int) {
	every := Seconds(5)
	for every*Seconds(t.scale) < 40 {
		every *= 2
	}
	for at := Seconds(0); at < t.h.Ended; at += every {
		fmt.Fprintf(&t.out, `<line class="grid" x1="%.1f" x2="%.1f" y1="14" y2="%d"/><text x="%.1f" y="10">%.0f s</text>`, t.x(at), t.x(at), height-20, t.x(at), at)
	}
}

func (t *timeline) label(y int, text string) {
	fmt.Fprintf(&t.out, `<text class="lane" x="2" y="%d">%s</text>`, y, template.HTMLEscapeString(text))
}

func (t *timeline) faults(y, height int) {
	t.label(y+14, "faults")
	for i := range t.h.Faults {
		f := &t.h.Faults[i]
		w := max(float64(f.Healed-f.Start)*t.scale, 2)
		title := template.HTMLEscapeString(fmt.Sprintf("%s at %s, %.2f to %.2f s: %s %s", f.Kind, f.Target, f.Start, f.Healed, f.Effect, f.Err))
		fmt.Fprintf(&t.out, `<g><title>%s</title><rect class="struck" x="%.1f" y="%d" width="%.1f" height="%d"/><text x="%.1f" y="%d">%s</text></g>`,
			title, t.x(f.Start), y, w, height-y-20, t.x(f.Start)+2, y+14+i%3*20, template.HTMLEscapeString(f.Kind+" "+f.Target))
	}
}

// answers are bars, one for each second.
func (t *timeline) answers(y int) {
	t.label(y+14, "answers/s")
	bins := make([]int, int(t.h.Ended)+2)
	most := 1
	for i := range t.h.Requests {
		if r := &t.h.Requests[i]; r.Outcome == Answered {
			bins[int(r.End)]++
			most = max(most, bins[int(r.End)])
		}
	}
	for at, n := range bins {
		high := float64(answersH) * float64(n) / float64(most)
		fmt.Fprintf(&t.out, `<rect class="answers" x="%.1f" y="%.1f" width="%.1f" height="%.1f"><title>second %d: %d answers</title></rect>`,
			t.x(Seconds(at)), float64(y+answersH)-high, max(t.scale-1, 0.5), high, at, n)
	}
}

// marks are what was refused or broke, and below them the violations.
func (t *timeline) marks(y int) {
	t.label(y+12, "broken, refused")
	for i := range t.h.Requests {
		if r := &t.h.Requests[i]; r.Outcome != Answered && r.Outcome != Cancelled {
			fmt.Fprintf(&t.out, `<circle class="%s" cx="%.1f" cy="%d" r="3"><title>%s</title></circle>`, cmp.Or(r.Outcome, Lost), t.x(r.End), y+10,
				template.HTMLEscapeString(fmt.Sprintf("%s %s at %.2f s: %s %s", r.ID, r.Outcome, r.End, r.Code, r.Detail)))
		}
	}
	t.label(y+laneH+12, "violations")
	for _, v := range t.r.Violations {
		fmt.Fprintf(&t.out, `<path class="violation" d="M%.1f %d l4 8 h-8 z"><title>%s</title></path>`, t.x(v.At), y+laneH+4, template.HTMLEscapeString(v.String()))
	}
}

// engine is how many requests an engine runs.
func (t *timeline) engine(e Slots, y int) {
	t.label(y+14, e.Engine)
	var steps []step
	for _, r := range t.h.Runs {
		if r.Engine == e.Engine {
			steps = append(steps, step{r.Start, 1}, step{r.End, -1})
		}
	}
	sortSteps(steps)
	n, base := 0, float64(y+laneH)
	fmt.Fprintf(&t.out, `<path class="running" d="M%.1f %.1f`, t.x(0), base)
	for _, s := range steps {
		n += s.n
		fmt.Fprintf(&t.out, "H%.1fV%.1f", t.x(s.at), base-float64(laneH)*float64(n)/float64(max(e.Slots, 1)))
	}
	fmt.Fprintf(&t.out, `H%.1fV%.1fz"><title>%s: requests that run, of %d slots</title></path>`, t.x(t.h.Ended), base, template.HTMLEscapeString(e.Engine), e.Slots)
}

var page = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Pulley under faults, seed {{.Seed}}</title>
<style>
body{font:14px/1.45 system-ui,sans-serif;margin:2em;color:#222;background:#fff}
table{border-collapse:collapse;margin:1em 0}th,td{padding:.25em .7em;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left}.bad{color:#b00020;font-weight:600}.time{overflow-x:auto;border:1px solid #ddd;padding:.5em 0}
code,pre{font:12px/1.5 ui-monospace,monospace}pre{white-space:pre-wrap}
svg text{font:10px system-ui,sans-serif;fill:#444}svg .lane{font-weight:600}.grid{stroke:#eee}.struck{fill:#f59e0b;opacity:.16}
.answers{fill:#3b82f6}.running{fill:#86b98a;stroke:#4d7d52;stroke-width:.5}.violation{fill:#b00020}
.broken{fill:#d97706}.refused{fill:#7c3aed}.lost,.wrong,.truncated,.repeated{fill:#b00020}
</style>
<h1>Pulley under faults</h1>
<p>Seed {{.Seed}}, {{.History.Brokers}} broker(s), {{.History.Gateways}} gateways, {{len .History.Engines}} workers, {{printf "%.0f" .History.Ended}} s.
{{.Requests}} requests: {{.Outcomes}}. {{.Runs}} runs on engines.{{with .Bug}} The binary has the bug <b>{{.}}</b>.{{end}}
{{if .Violations}}<b class="bad">{{len .Violations}} violations.</b>{{else}}<b>No violation.</b>{{end}}</p>
{{if .Lags}}<p>The machine had no time for the harness {{.Lags}} times, for {{printf "%.1f s" .LongestLag}} at most: times below may be longer than Pulley takes.</p>{{end}}
<p>The same faults again: <code>make chaos SEED={{.Seed}} BROKERS={{.History.Brokers}}</code> with the same FOR, QUIET and FAULTS.</p>
<table><tr><th>fault<th>strikes<th>requests<th>refused<th>broken<th>lost or wrong<th>run again<th>longest wait<th>longest gap<th>recovery<th>violations</tr>
{{range .Faults}}<tr><td>{{.Says}}<td>{{.Strikes}}<td>{{.Requests}}<td>{{.Refused}}<td>{{.Broken}}<td>{{.Bad}}<td>{{.Again}}<td>{{printf "%.1f s" .Wait}}<td>{{printf "%.1f s" .Gap}}<td>{{printf "%.1f s" .Recovery}}<td{{if .Violations}} class="bad"{{end}}>{{.Violations}}</tr>
{{end}}</table>
<h2>Timeline</h2><div class="time">{{.Timeline}}</div>
<p>Hover over a mark to read what it is. Broken: an answer that ended with an error event or a broken connection.</p>
{{if .Violations}}<h2>Violations</h2><p>{{range $rule, $n := .Rules}}{{$n}} × {{$rule}}; {{end}}</p>
<pre>{{range .Violations}}{{.}}
{{end}}</pre>{{end}}
</html>
`))
