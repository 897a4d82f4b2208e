// Package policyfile reads and writes the policy as a YAML file. It parses strictly, reports the line of each mistake,
// and compares two policies line by line.
package policyfile

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/policy"
)

// Format returns a policy as a YAML file; "" for nil.
func Format(p *policy.Policy) string {
	if p == nil {
		return ""
	}
	b, err := cli.EncodeYAML(p)
	if err != nil {
		panic(err) // a policy has nothing that cannot be encoded
	}
	return string(b)
}

// Parse parses a policy in YAML or JSON. What it leaves out has the defaults: all tiers, or single settings of one; the weight
// of a route's pool is 1, the percentage of a mirror 100, the penalty of a spill policy.SpillPenalty, and a shift moves 10
// percent every 2 minutes. Its error lists all mistakes with their lines.
func Parse(name string, b []byte) (*policy.Policy, error) {
	top, err := cli.ParseYAML(b)
	if err != nil {
		return nil, cli.Usagef("%s:%w", name, err)
	}
	p := new(policy.Policy)
	f := file{name: name, top: top}
	if top != nil {
		f.check(top, reflect.TypeFor[policy.Policy](), nil)
	}
	if f.problems == nil && top != nil {
		complete(top)
		if err := top.Decode(p); err != nil { // check has missed a mistake
			return nil, cli.Usagef("%s:%w", name, cli.YAMLError(err))
		}
	}
	if top != nil && field(top, "tiers") == nil { // an empty file is a mistake
		p.Tiers = policy.DefaultTiers()
	}
	if f.problems == nil {
		if invalid, ok := errors.AsType[policy.Invalid](p.Check()); ok {
			for _, problem := range invalid.Problems {
				f.problem(f.lineOf(problem.Path), problem.Path, "%s", problem.Reason)
			}
		}
	}
	if f.problems == nil {
		return p, nil
	}
	slices.SortStableFunc(f.problems, func(a, b problem) int { return a.line - b.line })
	var lines []string
	for _, p := range f.problems {
		lines = append(lines, p.text)
	}
	if len(lines) == 1 {
		return nil, cli.Usagef("%s", lines[0])
	}
	return nil, cli.Usagef("%s has %d problems:\n  %s", name, len(lines), strings.Join(lines, "\n  "))
}

// file collects the mistakes in a file.
type file struct {
	name     string
	top      *yaml.Node // nil if the file is empty
	problems []problem
}

func (f *file) problem(line int, path []string, format string, args ...any) {
	p := policy.Problem{Path: path, Reason: fmt.Sprintf(format, args...)}
	f.problems = append(f.problems, problem{line, fmt.Sprintf("%s:%d: %s", f.name, line, p)})
}

// check compares a node with the type that it will be decoded into.
func (f *file) check(n *yaml.Node, t reflect.Type, path []string) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	empty := n.ShortTag() == "!!null"
	_, isText := reflect.New(t).Interface().(encoding.TextUnmarshaler)
	switch kind := t.Kind(); {
	case !isText && (kind == reflect.Struct || kind == reflect.Map):
		if n.Kind == yaml.MappingNode {
			f.checkMapping(n, t, path)
		} else if !empty || kind == reflect.Struct {
			f.problem(n.Line, path, "must be 'key: value' lines")
		}
	case kind == reflect.Slice:
		if n.Kind == yaml.SequenceNode {
			for i, item := range n.Content {
				f.check(item, t.Elem(), at(path, strconv.Itoa(i)))
			}
		} else if !empty {
			f.problem(n.Line, path, "must be a list: lines that begin with '- '")
		}
	case n.Kind != yaml.ScalarNode:
		f.problem(n.Line, path, "must be %s", typeText(t))
	case empty:
		f.problem(n.Line, path, "has no value: must be %s", typeText(t))
	default:
		fraction := kind == reflect.Int && n.ShortTag() != "!!int" // it would be truncated
		if fraction || n.Decode(reflect.New(t).Interface()) != nil {
			f.problem(n.Line, path, "%q: must be %s", n.Value, typeText(t))
		}
	}
}

func (f *file) checkMapping(n *yaml.Node, t reflect.Type, path []string) {
	fields := fieldTypes(t)
	seen := make(map[string]bool)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name := key.Value
		if key.ShortTag() == "!!merge" { // a merge may contain itself
			f.problem(key.Line, at(path, name), "merge keys are not supported: write the values out")
			continue
		}
		if seen[name] {
			f.problem(key.Line, at(path, name), "given twice")
		}
		seen[name] = true
		switch of, known := fields[name]; {
		case t.Kind() == reflect.Map:
			f.check(value, t.Elem(), at(path, name))
		case known:
			f.check(value, of, at(path, name))
		default:
			var names []string
			for k := range fields {
				names = append(names, k)
			}
			slices.Sort(names)
			f.problem(key.Line, at(path, name), "unknown key%s", cli.DidYouMean(name, names))
		}
	}
}

// lineOf returns the line that a path leads to, or the last line on the way that exists.
func (f *file) lineOf(path []string) int {
	n, line := f.top, 1
	for _, step := range path {
		if n != nil && n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		if n == nil {
			break
		}
		var next *yaml.Node
		switch n.Kind {
		case yaml.MappingNode:
			for i := 0; i+1 < len(n.Content); i += 2 {
				if n.Content[i].Value == step {
					line, next = n.Content[i].Line, n.Content[i+1]
				}
			}
		case yaml.SequenceNode:
			if i, err := strconv.Atoi(step); err == nil && i < len(n.Content) {
				next = n.Content[i]
				line = next.Line
			}
		}
		n = next
	}
	return line
}

// problem is a mistake in a file.
type problem struct {
	line int
	text string
}

// at returns path with one more step, in memory of its own.
func at(path []string, step string) []string { return append(slices.Clone(path), step) }

// fieldTypes returns the types of a struct's fields by their names in YAML.
func fieldTypes(t reflect.Type) map[string]reflect.Type {
	fields := make(map[string]reflect.Type)
	if t.Kind() != reflect.Struct {
		return fields
	}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		fields[name] = f.Type
	}
	return fields
}

func typeText(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[policy.Duration]():
		return "a duration such as 30s or 1m30s"
	case t == reflect.TypeFor[time.Time]():
		return "a time such as 2006-01-02T15:04:05Z"
	}
	switch t.Kind() {
	case reflect.Int:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	case reflect.Bool:
		return "true or false"
	}
	return "a plain value"
}
