package policyfile

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/policy"
)

func TestDiffLines(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		text := func() string {
			var b strings.Builder
			for range random.IntN(30) {
				fmt.Fprintf(&b, "%s%d\n", strings.Repeat("  ", random.IntN(3)), random.IntN(6))
			}
			return b.String()
		}
		before, after := text(), text()
		var a, b []string
		for _, l := range compareLines(splitLines(before), splitLines(after)) {
			if l.Op != '+' {
				a = append(a, l.Text)
			}
			if l.Op != '-' {
				b = append(b, l.Text)
			}
		}
		if strings.Join(a, "\n") != strings.TrimSuffix(before, "\n") || strings.Join(b, "\n") != strings.TrimSuffix(after, "\n") {
			t.Fatalf("the difference of\n%s\nand\n%s\nleads elsewhere", before, after)
		}
		if (len(diffLines(before, after)) == 0) != (before == after) {
			t.Fatalf("no hunks for\n%s\nand\n%s", before, after)
		}
	}
	if h := diffLines("", ""); h != nil {
		t.Errorf("hunks %v of nothing", h)
	}
}

func TestDiffShowsWhatALineIsBelow(t *testing.T) {
	before := Format(policy.Default())
	hunks := diffLines(before, strings.Replace(before, "deadline: 1h", "deadline: 2h", 1))
	if len(hunks) != 1 || hunks[0].Within != "tiers: - name: batch" {
		t.Errorf("hunks %+v", hunks)
	}
}
