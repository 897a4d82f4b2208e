package main

import (
	"strings"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"
)

func TestTableFitsTheTerminal(t *testing.T) {
	tbl := table{columns: []column{{name: "ID", cut: 6, tail: true}, text("NAME"), number("N"), wide(word("EXTRA")), ifAny(word("NOTE")), painted(word("STATE"), paintState)}}
	tbl.row("0197b2f0-7d4c-7e1a", "a-rather-long-name-of-a-pool", 7, "x", "", "ready")
	tbl.row("2", "日本語のモデル", 12345, "y", "", "down")
	tests := map[string]struct {
		page page
		want string
	}{
		"a pipe has no edge": {page{}, `ID                  NAME                              N  STATE
0197b2f0-7d4c-7e1a  a-rather-long-name-of-a-pool      7  ready
2                   日本語のモデル                12345  down
`},
		"wide": {page{wide: true}, `ID                  NAME                              N  EXTRA  STATE
0197b2f0-7d4c-7e1a  a-rather-long-name-of-a-pool      7  x      ready
2                   日本語のモデル                12345  y      down
`},
		"40 columns": {page{terminal: terminal{width: 40, height: 9}}, `ID            NAME              N  STATE
…2f0-7d4c-7e  a-rather-lo…      7  ready
2             日本語のモ…   12345  down
`},
		"too narrow for anything": {page{terminal: terminal{width: 12, height: 9}}, "ID      NAM…\n…4c-7e1a  a…\n2       日…\n"},
		"colour":                  {page{terminal: terminal{color: true}, wide: false}, "\x1b[1mID\x1b[0m"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.page.table(tbl)
			got := tt.page.b.String()
			if tt.page.color {
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
				if w := ansi.StringWidth(strings.TrimSuffix(line, "\n")); w > tt.page.width {
					t.Errorf("%d columns: %s", w, line)
				}
			}
		})
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0.0s", 1540 * time.Millisecond: "1.5s", 59 * time.Second: "59s", 61 * time.Second: "1m01s", 3 * time.Hour: "3h00m", 50 * time.Hour: "2d", -time.Minute: "-1m00s",
	} {
		if got := age(d); got != want {
			t.Errorf("age(%v) = %s, want %s", d, got, want)
		}
	}
}

func TestPrintable(t *testing.T) {
	for s, want := range map[string]string{
		"org/llama:7b": "org/llama:7b", "mit \"Zitat\" é": "mit \"Zitat\" é", "a\x1b[31mb\n": `a\x1b[31mb\n`, "\"\x00\\": `"\x00\\`, "\xff": `\xff`,
	} {
		if got := printable(s); got != want {
			t.Errorf("printable(%q) = %q, want %q", s, got, want)
		}
	}
	if got, want := printableLines("a\r\n\tb\x1b[2J"), "a\n    b\\x1b[2J"; got != want {
		t.Errorf("printableLines = %q, want %q", got, want)
	}
}

func TestYAMLKeepsNamesAndTypes(t *testing.T) {
	v := struct {
		Text  string   `json:"the_text"`
		Yes   string   `json:"yes"`
		Lines string   `json:"lines"`
		N     float64  `json:"n"`
		List  []string `json:"list"`
		Gone  string   `json:"gone,omitempty"`
	}{"a: b", "true", "one\ntwo", 1.5, []string{"1", "é"}, ""}
	b, err := yamlOf(v)
	want := "the_text: 'a: b'\nyes: \"true\"\nlines: |-\n  one\n  two\nn: 1.5\nlist:\n  - \"1\"\n  - é\n"
	if err != nil || string(b) != want {
		t.Errorf("got %v\n%s\nwant\n%s", err, b, want)
	}
}

// A page is redrawn in place: each line to its end, and nothing below.
func TestScreen(t *testing.T) {
	got := string(screen([]byte("a\nb\nc\nd\n"), "pulley x", terminal{width: 40, height: 5}))
	if !strings.HasPrefix(got, "\x1b[Hpulley x  ") || !strings.HasSuffix(got, "\x1b[K\na\x1b[K\nb\x1b[K\n… and 2 lines more\x1b[K\n\x1b[J") {
		t.Errorf("screen %q", got)
	}
}
