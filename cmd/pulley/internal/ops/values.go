package ops

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
)

// percentOr is a percentage, or nothing for 0.
func percentOr(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n) + "%"
}

// durationOr is a duration as it is written in a policy, or nothing for 0.
func durationOr(d policy.Duration) string {
	if d == 0 {
		return ""
	}
	return cli.FormatDuration(time.Duration(d))
}

// override sets a value if a flag has given another.
func override[T any](given bool, value *T, flag T) {
	if given {
		*value = flag
	}
}

// parsePart reads POOL=NUMBER; the number may be left out, or have a percent
// sign.
func parsePart(text string, number float64) (pool string, n float64, err error) {
	at := strings.LastIndexByte(text, '=')
	if at < 0 {
		return text, number, nil
	}
	if at == 0 {
		return "", 0, errors.New("names no pool")
	}
	n, err = parsePercent(text[at+1:])
	return text[:at], n, err
}

// parsePercent reads a number that may have a percent sign.
func parsePercent(text string) (float64, error) {
	n, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(text), "%")), 64)
	if err != nil || math.IsNaN(n) || math.IsInf(n, 0) {
		return 0, fmt.Errorf("%q is no number", text)
	}
	return n, nil
}

// notEmpty is a list without empty entries, which empty it on a command line.
func notEmpty(list []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == "" })
}

// percentValue is a flag for a percentage, with or without its sign.
type percentValue int

func (p *percentValue) Set(text string) error {
	n, err := parsePercent(text)
	if err == nil && n != float64(int(n)) {
		err = errors.New("want a whole percentage such as 10 or 10%")
	}
	*p = percentValue(n)
	return err
}

func (p *percentValue) String() string { return strconv.Itoa(int(*p)) }

func (p *percentValue) Type() string { return "percent" }

// shareValue is a flag for a percentage, with or without its sign.
type shareValue float64

func (v *shareValue) Set(text string) error {
	n, err := parsePercent(text)
	*v = shareValue(n)
	return err
}

func (v *shareValue) String() string { return term.Percent(float64(*v)) }

func (v *shareValue) Type() string { return "percent" }

const showBodyHelp = "show the prompt too"

// printBody writes a prompt or an answer, whole.
func printBody(p *term.Page, body string, size int64) {
	if body == "" && size > 0 {
		body = "(" + term.Bytes(size) + ", not in the message)"
	}
	if p.Width > 0 {
		body = term.PrintableLines(body)
	}
	p.Raw("\n" + strings.TrimRight(body, "\n") + "\n\n")
}

// printHeaders writes the headers that an engine gets.
func printHeaders(p *term.Page, h http.Header) {
	if len(h) == 0 {
		return
	}
	p.Heading("headers")
	var list []term.Field
	for _, k := range slices.Sorted(maps.Keys(h)) {
		list = append(list, term.KV(k, cmp.Or(strings.Join(h[k], ", "), "(empty)")))
	}
	p.Fields(list...)
}
