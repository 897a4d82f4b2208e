package term

import (
	"strings"
	"testing"

	"github.com/charmbracelet/x/ansi"
)

func TestTableFitsTheTerminal(t *testing.T) {
	tbl := Table{Columns: []Column{{Name: "ID", MinWidth: 6, KeepEnd: true}, Text("NAME"), Number("N"), Wide(Fixed("EXTRA")), NonEmpty(Fixed("NOTE")), Styled(Fixed("STATE"), stateStyle)}}
	tbl.Row("0197b2f0-7d4c-7e1a", "a-rather-long-name-of-a-pool", 7, "x", "", "ready")
	tbl.Row("2", "日本語のモデル", 12345, "y", "", "down")
	tests := map[string]struct {
		page Page
		want string
	}{
		"a pipe has no edge": {Page{}, `ID                  NAME                              N  STATE
0197b2f0-7d4c-7e1a  a-rather-long-name-of-a-pool      7  ready
2                   日本語のモデル                12345  down
`},
		"wide": {Page{Wide: true}, `ID                  NAME                              N  EXTRA  STATE
0197b2f0-7d4c-7e1a  a-rather-long-name-of-a-pool      7  x      ready
2                   日本語のモデル                12345  y      down
`},
		"40 columns": {Page{Terminal: Terminal{Width: 40, Height: 9}}, `ID            NAME              N  STATE
…2f0-7d4c-7e  a-rather-lo…      7  ready
2             日本語のモ…   12345  down
`},
		"too narrow for anything": {Page{Terminal: Terminal{Width: 12, Height: 9}}, "ID      NAM…\n…4c-7e1a  a…\n2       日…\n"},
		"colour":                  {Page{Terminal: Terminal{Color: true}, Wide: false}, "\x1b[1mID\x1b[0m"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.page.Table(tbl)
			got := tt.page.String()
			if tt.page.Color {
				if !strings.HasPrefix(got, tt.want) || !strings.Contains(got, "\x1b[32mready\x1b[0m") || !strings.Contains(got, "\x1b[31mdown\x1b[0m") {
					t.Errorf("got %q", got)
				}
				return
			}
			if name == "a pipe has no edge" || name == "wide" {
				if got != tt.want {
					t.Errorf("got\n%s\nwant\n%s", got, tt.want)
				}
				return
			}
			for line := range strings.Lines(got) {
				if w := ansi.StringWidth(strings.TrimSuffix(line, "\n")); w > tt.page.Width {
					t.Errorf("%d columns: %s", w, line)
				}
			}
		})
	}
}

func stateStyle(state string) Style {
	return map[string]Style{"ready": Green, "down": Red}[state]
}
