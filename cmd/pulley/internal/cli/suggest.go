package cli

import (
	"fmt"
	"strings"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

// NoSuch is a NotFoundError with a suggestion: a similar name among the known
// ones, or the command that lists them.
func NoSuch(kind, name string, known []string) error {
	hint := DidYouMean(name, known)
	if hint == "" {
		hint = fmt.Sprintf("; see 'pulley %s ls'", kind)
	}
	return NotFoundf("no %s %q%s", kind, name, hint)
}

// Ambiguous is a UsageError: a name could be any of several.
func Ambiguous(kind, name string, candidates []string) error {
	return Usagef("%s %s is ambiguous: it may be %s", kind, name, term.Shorten(OneOf(candidates), 160))
}

// DidYouMean returns a clause that suggests the known word most similar to word,
// or "" if none is similar.
func DidYouMean(word string, known []string) string {
	if s := nearest(word, known); s != "" {
		return fmt.Sprintf("; did you mean %q?", s)
	}
	return ""
}

// nearest returns the known word with the smallest edit distance to word, if that
// is at most a third of its length, or two.
func nearest(word string, known []string) string {
	best, most := "", max(2, len(word)/3)
	for _, k := range known {
		if d := editDistance(strings.ToLower(word), strings.ToLower(k)); d <= most {
			best, most = k, d-1
		}
	}
	return best
}

// editDistance is the number of bytes to insert, delete or replace to turn a into b.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := diagonal
			if a[i] != b[j] {
				d = 1 + min(d, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], d
		}
	}
	return row[len(b)]
}

// OneOf lists choices as "a, b or c".
func OneOf(choices []string) string {
	if len(choices) < 2 {
		return strings.Join(choices, "")
	}
	last := len(choices) - 1
	return strings.Join(choices[:last], ", ") + " or " + choices[last]
}
