package policyfile

import (
	"strings"

	"github.com/pulley-lb/pulley/policy"
)

// Hunk is a place where two files differ, with some lines of context.
type Hunk struct {
	Within string // the lines that it is indented below
	Lines  []Line
}

// Line is a line of a hunk.
type Line struct {
	Op   byte // ' ' in both files, '-' only in the first, '+' only in the second
	Text string
}

const (
	// diffContext is the number of lines of context around a difference.
	diffContext = 3

	// maxDiff bounds the work of a comparison, in pairs of lines: larger files count as different between their common
	// beginning and end.
	maxDiff = 16 << 20
)

// Diff compares two policies as files; nil is an empty file.
func Diff(before, after *policy.Policy) []Hunk { return diffLines(Format(before), Format(after)) }

// diffLines compares two indented texts line by line.
func diffLines(before, after string) []Hunk {
	all := compareLines(splitLines(before), splitLines(after))
	var hunks []Hunk
	end := 0 // of the last hunk
	for i := 0; i < len(all); i++ {
		if all[i].Op == ' ' {
			continue
		}
		from := max(end, i-diffContext)
		same := 0
		for i++; i < len(all) && same <= 2*diffContext; i++ {
			if same++; all[i].Op != ' ' {
				same = 0
			}
		}
		end = min(len(all), i-same+diffContext)
		hunks = append(hunks, Hunk{Within: above(all, from), Lines: all[from:end]})
		i = end - 1
	}
	return hunks
}

func splitLines(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

// above returns the lines that a line is indented below, except those in its hunk.
func above(all []Line, at int) string {
	indent := func(s string) int { return len(s) - len(strings.TrimLeft(s, " ")) }
	var path []string
	least := indent(all[at].Text)
	for i := at - 1; i >= 0 && least > 0; i-- {
		if n := indent(all[i].Text); n < least && all[i].Op != '+' {
			path = append([]string{strings.TrimSpace(all[i].Text)}, path...)
			least = n
		}
	}
	return strings.Join(path, " ")
}

// compareLines compares two texts by their longest common subsequence.
func compareLines(a, b []string) []Line {
	var head, tail []Line
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		head = append(head, Line{' ', a[0]})
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		tail = append(tail, Line{' ', a[len(a)-1]})
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	// common[i][j] is the length of the longest common subsequence of a[i:] and b[j:].
	common := make([][]int32, len(a)+1)
	useful := len(a)*len(b) <= maxDiff
	for i := len(a); useful && i >= 0; i-- {
		common[i] = make([]int32, len(b)+1)
		for j := len(b) - 1; i < len(a) && j >= 0; j-- {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case useful && i < len(a) && j < len(b) && a[i] == b[j]:
			head = append(head, Line{' ', a[i]})
			i, j = i+1, j+1
		case i < len(a) && (j == len(b) || !useful || common[i+1][j] >= common[i][j+1]):
			head = append(head, Line{'-', a[i]})
			i++
		default:
			head = append(head, Line{'+', b[j]})
			j++
		}
	}
	for n := len(tail) - 1; n >= 0; n-- {
		head = append(head, tail[n])
	}
	return head
}
