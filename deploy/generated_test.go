// Package deploy has what operators install beside Pulley. Its tests check that it fits the code.
package deploy

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/pulley-lb/pulley/metric"
)

var update = flag.Bool("update", false, "write the files that are generated from package metric")

const (
	alerts    = "prometheus/alerts.yaml"
	cases     = "prometheus/alerts_test.yaml" // for promtool
	dashboard = "grafana/pulley.json"
)

func TestGenerated(t *testing.T) {
	for file, want := range map[string]string{alerts: metric.Alerts(), dashboard: string(metric.Dashboard())} {
		if *update {
			if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != want {
			t.Errorf("%s is out of date (%v): go generate ./metric", file, err)
		}
	}
}

// rule is one of a file of rules.
type rule struct {
	Alert, Expr, For    string
	Labels, Annotations map[string]string
}

func rules(t *testing.T) []rule {
	t.Helper()
	text, err := os.ReadFile(alerts)
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Groups []struct{ Rules []rule } }
	if err := yaml.Unmarshal(text, &file); err != nil || len(file.Groups) != 1 {
		t.Fatalf("%d groups, %v", len(file.Groups), err)
	}
	return file.Groups[0].Rules
}

func TestAlertsNameMetricsOfTheTable(t *testing.T) {
	names := make(map[string]bool)
	for _, r := range rules(t) {
		if _, err := time.ParseDuration(r.For); err != nil || r.Alert == "" || names[r.Alert] || r.Annotations["summary"] == "" || r.Annotations["description"] == "" ||
			!slices.Contains([]string{"critical", "warning"}, r.Labels["severity"]) {
			t.Errorf("rule %+v", r)
		}
		names[r.Alert] = true
		check(t, r.Alert, r.Expr)
	}
	for _, must := range []string{"PulleyEngineDown", "PulleyQueueStuck", "PulleyGPUFenced", "PulleyBrokerLost"} {
		if !names[must] {
			t.Errorf("no alert %s", must)
		}
	}
}

func TestDashboardNamesMetricsOfTheTable(t *testing.T) {
	text, err := os.ReadFile(dashboard)
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			ID      int
			Type    string
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr, LegendFormat string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	taken := make(map[[2]int]string)
	for _, p := range board.Panels {
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other, is := taken[[2]int{x, y}]; is || x >= 24 {
					t.Fatalf("panel %s lies on %s or outside", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if (p.Type == "row") != (len(p.Targets) == 0) {
			t.Errorf("panel %s, a %s, has %d expressions", p.Title, p.Type, len(p.Targets))
		}
		for _, target := range p.Targets {
			by := check(t, p.Title, target.Expr)
			for _, l := range regexp.MustCompile(`\{\{(\w+)\}\}`).FindAllStringSubmatch(target.LegendFormat, -1) {
				if !slices.Contains(by, l[1]) {
					t.Errorf("%s: the lines of %s are named by %s", p.Title, target.Expr, l[1])
				}
			}
		}
	}
}

var (
	series = regexp.MustCompile(`\b((?:pulley_|vllm:|DCGM_)\w+)(\{[^}]*\})?`)
	choice = regexp.MustCompile(`(\w+)(=~|!~|!=|=)"([^"]*)"`)
	groups = regexp.MustCompile(`(?:by|on) \(([^)]*)\)`)
)

// check checks that an expression is of metrics of the table, with labels and values that they have. It returns the labels by
// which it groups.
func check(t *testing.T, about, expr string) (by []string) {
	t.Helper()
	labels := []string{"le", "instance"}
	found := series.FindAllStringSubmatch(expr, -1)
	if len(found) == 0 {
		t.Errorf("%s: no metric in %s", about, expr)
	}
	for _, s := range found {
		name, part := s[1], ""
		for _, suffix := range []string{"_bucket", "_count", "_sum"} {
			if of, ok := strings.CutSuffix(name, suffix); ok && metric.Find(name) == nil {
				name, part = of, suffix
			}
		}
		m := metric.Find(name)
		if m == nil || (m.Kind == metric.Histogram) != (part != "") {
			t.Errorf("%s: no metric %s", about, s[1])
			continue
		}
		labels = append(labels, m.Labels...)
		for _, c := range choice.FindAllStringSubmatch(s[2], -1) {
			l, how, value := c[1], c[2], c[3]
			switch known := m.Values[l]; {
			case l == "instance", l == "job": // Prometheus adds them
			case !slices.Contains(m.Labels, l):
				t.Errorf("%s: %s has no label %s", about, name, l)
			case value == "", strings.HasPrefix(value, "$"), len(known) == 0:
			case how == "=" && !slices.Contains(known, value),
				how == "=~" && !slices.ContainsFunc(known, regexp.MustCompile("^(?:"+value+")$").MatchString):
				t.Errorf("%s: label %s of %s is never %s", about, l, name, value)
			}
		}
	}
	for _, g := range groups.FindAllStringSubmatch(expr, -1) {
		for l := range strings.SplitSeq(g[1], ", ") {
			if by = append(by, l); !slices.Contains(labels, l) {
				t.Errorf("%s: no metric of %s has the label %s", about, expr, l)
			}
		}
	}
	return by
}

// The cases for promtool have series of the table, and one for each alert. Where there is a promtool, each alert fires as they
// say.
func TestAlertsFire(t *testing.T) {
	text, err := os.ReadFile(cases)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Tests []struct {
			Series []struct{ Series string } `yaml:"input_series"`
			Alerts []struct {
				Name string `yaml:"alertname"`
				Exp  []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	fires := make(map[string]bool)
	for _, c := range file.Tests {
		for _, s := range c.Series {
			check(t, cases, s.Series)
		}
		for _, a := range c.Alerts {
			fires[a.Name] = fires[a.Name] || len(a.Exp) > 0
		}
	}
	for _, r := range rules(t) {
		if !fires[r.Alert] {
			t.Errorf("%s has no case in which %s fires", cases, r.Alert)
		}
	}
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("no promtool (Debian's package prometheus)")
	}
	for _, args := range [][]string{{"check", "rules", "alerts.yaml"}, {"test", "rules", "alerts_test.yaml"}} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = "prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
