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

// percentOr formats a percentage; it returns "" for 0.
func percentOr(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n) + "%"
}

// durationOr formats a duration as in a policy; it returns "" for 0.
func durationOr(d policy.Duration) string {
	if d == 0 {
		return ""
	}
	return cli.FormatDuration(time.Duration(d))
}

// override sets a value if its flag was given.
func override[T any](given bool, value *T, flag T) {
	if given {
		*value = flag
	}
}

// parsePart parses POOL=NUMBER. The number may have a percent sign; without one it is the default.
func parsePart(text string, defaultNumber float64) (pool string, n float64, err error) {
	at := strings.LastIndexByte(text, '=')
	if at < 0 {
		return text, defaultNumber, nil
	}
	if at == 0 {
		return "", 0, errors.New("the pool is missing")
	}
	if n, err = parsePercent(text[at+1:]); err != nil {
		err = fmt.Errorf("%q is %w", text[at+1:], err)
	}
	return text[:at], n, err
}

// parsePercent parses a number that may have a percent sign.
func parsePercent(text string) (float64, error) {
	n, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(text), "%")), 64)
	if err != nil || math.IsNaN(n) || math.IsInf(n, 0) {
		return 0, errors.New("not a number")
	}
	return n, nil
}

// notEmpty drops empty entries: a flag with an empty value on a command line empties a list.
func notEmpty(list []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == "" })
}

// percentValue is a flag for a whole percentage, with or without the sign.
type percentValue int

func (p *percentValue) Set(text string) error {
	n, err := parsePercent(text)
	if err == nil && n != float64(int(n)) {
		err = errors.New("must be a whole percentage such as 10 or 10%")
	}
	*p = percentValue(n)
	return err
}

func (p *percentValue) String() string { return strconv.Itoa(int(*p)) }

func (p *percentValue) Type() string { return "percent" }

// shareValue is a flag for a percentage, with or without the sign.
type shareValue float64

func (v *shareValue) Set(text string) error {
	n, err := parsePercent(text)
	*v = shareValue(n)
	return err
}

func (v *shareValue) String() string { return term.Percent(float64(*v)) }

func (v *shareValue) Type() string { return "percent" }

// showBodyHelp describes --show-body, without which prompts are never shown.
const showBodyHelp = "also show the prompt"

func printBody(p *term.Page, body string, size int64) {
	if body == "" && size > 0 {
		body = "(" + term.Bytes(size) + ", not stored in the message)"
	}
	if p.Width > 0 {
		body = term.PrintableLines(body)
	}
	p.Raw("\n" + strings.TrimRight(body, "\n") + "\n\n")
}

// printHeaders writes the headers that the engine receives.
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
