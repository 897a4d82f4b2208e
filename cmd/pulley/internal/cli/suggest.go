package cli

import (
	"fmt"
	"strings"
)

// NoSuch says that what was named does not exist, and what may have been meant.
func NoSuch(kind, name string, known []string) error {
	hint := DidYouMean(name, known)
	if hint == "" {
		hint = fmt.Sprintf("; see 'pulley %s ls'", kind)
	}
	return NotFoundf("no %s %q%s", kind, name, hint)
}

// DidYouMean is a clause with the known word nearest to word, or nothing if
// none is near.
func DidYouMean(word string, known []string) string {
	if s := nearest(word, known); s != "" {
		return fmt.Sprintf("; did you mean %q?", s)
	}
	return ""
}

func nearest(word string, known []string) string {
	best, most := "", max(2, len(word)/3)
	for _, k := range known {
		if d := editDistance(strings.ToLower(word), strings.ToLower(k)); d <= most {
			best, most = k, d-1
		}
	}
	return best
}

// editDistance is the number of characters to insert, delete or replace to
// make b of a.
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
