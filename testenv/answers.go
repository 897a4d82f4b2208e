package testenv

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/engine"
)

// A Recording has the answers of one engine, as package engine's testdata/answers has them. A file begins with comments
// about where the answers are from, and with settings, one a line: the engine with its version, its dialect, the model
// that it serves, its context in tokens, a header of every answer. An answer is
//
//	## NAME
//	METHOD PATH REQUEST
//	STATUS TYPE FAULT
//	BODY
//
// The request's body is on one line; LONG in it stands for 5000 words. TYPE is a dash for an answer without a body. FAULT
// is what an error is due to: request, engine, busy, setup or misfit; it may be missing. @NAME as a body is a page of
// testdata/metrics. A body that is missing is not compared.
type Recording struct {
	File    string
	Engine  string
	Dialect engine.Dialect
	Model   string
	Context int
	Header  string // "NAME: VALUE"; "": none
	Answers []Answer
}

// An Answer is one of a Recording.
type Answer struct {
	Name                  string
	Method, Path, Request string
	Status                int
	Type                  string // of its content, without parameters; "": it has no body
	Fault                 string
	Body                  string
}

// Recordings reads all recordings in a directory.
func Recordings(t testing.TB, dir string) (all []Recording) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no recordings in %s: %v", dir, err)
	}
	for _, file := range files {
		all = append(all, readRecording(t, file))
	}
	return all
}

// Find returns the answer with a name.
func (r *Recording) Find(name string) (Answer, bool) {
	for _, a := range r.Answers {
		if a.Name == name {
			return a, true
		}
	}
	return Answer{}, false
}

func readRecording(t testing.TB, file string) Recording {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	r := Recording{File: filepath.Base(file)}
	head, answers, _ := strings.Cut(string(text), "\n## ")
	for line := range strings.Lines(head) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch name {
		case "engine":
			r.Engine = value
		case "dialect":
			r.Dialect = engine.Dialect(value)
		case "model":
			r.Model = value
		case "context":
			r.Context, _ = strconv.Atoi(value)
		case "header":
			r.Header = value
		}
	}
	if r.Engine == "" || r.Dialect == "" || r.Model == "" {
		t.Fatalf("%s: engine, dialect or model is missing", file)
	}
	for block := range strings.SplitSeq(answers, "\n## ") {
		r.Answers = append(r.Answers, readAnswer(t, file, block))
	}
	return r
}

func readAnswer(t testing.TB, file, block string) Answer {
	t.Helper()
	lines := strings.SplitN(strings.TrimRight(block, "\n"), "\n", 4)
	if len(lines) < 3 {
		t.Fatalf("%s: %q is too short", file, block)
	}
	a := Answer{Name: lines[0]}
	request := strings.SplitN(lines[1], " ", 3)
	status := strings.Fields(lines[2])
	if len(request) < 2 || len(status) < 2 {
		t.Fatalf("%s: %s: a line is too short", file, a.Name)
	}
	a.Method, a.Path = request[0], request[1]
	if len(request) == 3 {
		a.Request = strings.ReplaceAll(request[2], "LONG", strings.Repeat("word ", 5000))
	}
	if a.Status, _ = strconv.Atoi(status[0]); a.Status < 200 {
		t.Fatalf("%s: %s: %q is no status", file, a.Name, status[0])
	}
	if status[1] != "-" {
		a.Type = status[1]
	}
	if len(status) == 3 {
		a.Fault = status[2]
	}
	if len(lines) == 4 {
		a.Body = lines[3]
	}
	if name, ok := strings.CutPrefix(a.Body, "@"); ok {
		page, err := os.ReadFile(filepath.Join(filepath.Dir(file), "..", "metrics", name))
		if err != nil {
			t.Fatal(err)
		}
		a.Body = string(page)
	}
	return a
}
