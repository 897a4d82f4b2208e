package cli

import (
	"testing"
)

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
