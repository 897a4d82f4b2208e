package docs

import (
	"flag"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the picture of the packages into architecture.md")

const (
	module  = "github.com/pulley-lb/pulley/"
	page    = "architecture.md"
	opening = "<!-- packages: go test ./docs -update -->\n"
	closing = "<!-- packages end -->\n"
)

// The picture in architecture.md shows the imports as they are.
func TestPictureOfThePackages(t *testing.T) {
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), opening)
	picture, after, closed := strings.Cut(rest, closing)
	if !found || !closed {
		t.Fatalf("%s has no %q … %q", page, opening, closing)
	}
	want := draw(imports(t))
	if picture == want {
		return
	}
	if !*update {
		t.Fatalf("the picture of the packages is out of date: go test ./docs -update\n\nin the page:\n%s\nby the imports:\n%s", picture, want)
	}
	if err := os.WriteFile(page, []byte(before+opening+want+closing+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// imports are the imports of each package, all without the module's path. Left out are tests, the package that has only
// tests, the tools of the end-to-end tests, and other modules. The files are read here and not by the go command, so that the result of
// this test is cached only until one of them changes.
func imports(t *testing.T) map[string][]string {
	t.Helper()
	packages := make(map[string][]string)
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && slices.Contains([]string{".git", "e2e", "scenarios", "testdata"}, d.Name()):
			return filepath.SkipDir
		case d.IsDir() && path != ".." && ownModule(path):
			return filepath.SkipDir
		case d.IsDir(), !strings.HasSuffix(path, ".go"), strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(filepath.Dir(strings.TrimPrefix(path, "../")))
		own := packages[name]
		for _, i := range file.Imports {
			if i, ok := strings.CutPrefix(strings.Trim(i.Path.Value, `"`), module); ok && !slices.Contains(own, i) {
				own = append(own, i)
			}
		}
		packages[name] = own
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return packages
}

// ownModule says whether a directory is another module.
func ownModule(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

// draw is a Mermaid flowchart: a floor for each height above the packages that import nothing of the module, and an
// arrow for each import that no chain of others implies.
func draw(packages map[string][]string) string {
	heights := make(map[string]int)
	var height func(p string) int
	height = func(p string) int {
		if h, ok := heights[p]; ok {
			return h
		}
		h := 0
		for _, i := range packages[p] {
			h = max(h, height(i)+1)
		}
		heights[p] = h
		return h
	}
	top := 0
	for p := range packages {
		top = max(top, height(p))
	}
	var b strings.Builder
	b.WriteString("```mermaid\nflowchart TD\n")
	names := slices.Sorted(maps.Keys(packages))
	for h := top; h >= 0; h-- {
		fmt.Fprintf(&b, "  subgraph floor%d[\" \"]\n", h)
		for _, p := range names {
			if heights[p] == h {
				fmt.Fprintf(&b, "    %s[%s]\n", id(p), strings.TrimPrefix(p, "cmd/pulley/"))
			}
		}
		b.WriteString("  end\n")
	}
	for _, p := range names {
		for _, i := range slices.Sorted(slices.Values(packages[p])) {
			if !implied(packages, p, i) {
				fmt.Fprintf(&b, "  %s --> %s\n", id(p), id(i))
			}
		}
	}
	b.WriteString("```\n")
	return b.String()
}

func id(p string) string { return strings.ReplaceAll(strings.TrimPrefix(p, "cmd/pulley/"), "/", "_") }

// implied reports whether p reaches i by way of another of its imports.
func implied(packages map[string][]string, p, i string) bool {
	var reaches func(from string) bool
	reaches = func(from string) bool {
		return slices.ContainsFunc(packages[from], func(next string) bool { return next == i || reaches(next) })
	}
	return slices.ContainsFunc(packages[p], func(other string) bool { return other != i && reaches(other) })
}

// What is large is linked into the command alone, so that a program that uses a gateway or a worker does not carry it.
func TestLargeDependenciesAreOfTheCommand(t *testing.T) {
	large := []string{"google.golang.org/grpc", "go.opentelemetry.io/otel/sdk", "go.opentelemetry.io/otel/exporters", "go.opentelemetry.io/proto"}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || path == "../cmd"):
			return filepath.SkipDir
		case d.IsDir() && path != ".." && ownModule(path):
			return filepath.SkipDir
		case d.IsDir(), !strings.HasSuffix(path, ".go"), strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, i := range file.Imports {
			name := strings.Trim(i.Path.Value, `"`)
			if slices.ContainsFunc(large, func(l string) bool { return name == l || strings.HasPrefix(name, l+"/") }) {
				t.Errorf("%s imports %s", path, name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
