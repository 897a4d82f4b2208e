package main

import (
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
)

var (
	attribute = regexp.MustCompile(`(?:href|src)="([^"]*)"`)
	ids       = regexp.MustCompile(` id="([^"]*)"`)
)

// Each link of the site leads to a page, an anchor or an image of it, or elsewhere; nothing is loaded from elsewhere.
func TestSite(t *testing.T) {
	dir := t.TempDir()
	n, err := build(os.DirFS("../.."), dir)
	if err != nil {
		t.Fatal(err)
	}
	if n < 20 {
		t.Errorf("%d pages", n)
	}
	site := os.DirFS(dir)
	anchorsOf := make(map[string]map[string]bool)
	texts := make(map[string]string)
	err = fs.WalkDir(site, ".", func(file string, d fs.DirEntry, err error) error {
		if err != nil || path.Ext(file) != ".html" {
			return err
		}
		text, err := fs.ReadFile(site, file)
		texts[file], anchorsOf[file] = string(text), make(map[string]bool)
		for _, m := range ids.FindAllStringSubmatch(string(text), -1) {
			anchorsOf[file][m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for file, text := range texts {
		for _, m := range attribute.FindAllStringSubmatch(text, -1) {
			link := m[1]
			if strings.Contains(link, "://") || strings.HasPrefix(link, "mailto:") {
				if strings.HasPrefix(m[0], "src") {
					t.Errorf("%s loads %s", file, link)
				}
				continue
			}
			to, id, _ := strings.Cut(link, "#")
			target := file
			if to != "" {
				target = path.Join(path.Dir(file), to)
			}
			if _, err := fs.Stat(site, target); err != nil {
				t.Errorf("%s: link %s: %v", file, link, err)
			} else if id != "" && !anchorsOf[target][id] {
				t.Errorf("%s: link %s: there is no such heading", file, link)
			}
		}
		if !strings.Contains(text, `<h2>Operate</h2>`) || strings.Count(text, "<h1") != 1 {
			t.Errorf("%s has no list of pages, or not one title", file)
		}
	}
	if text := texts["docs/troubleshooting.html"]; !strings.Contains(text, `aria-current="page">Troubleshooting by symptom</a>`) || !strings.Contains(text, "<table>") {
		t.Error("docs/troubleshooting.html is not marked in the list, or its tables are none")
	}
}

func TestLinkToNothing(t *testing.T) {
	repo := fstest.MapFS{"README.md": {Data: []byte("# A\n[b](docs/README.md) [c](LICENSE)\n")}, "docs/README.md": {Data: []byte("# B\n")}, "LICENSE": {}}
	dir := t.TempDir()
	if n, err := build(repo, dir); n != 2 || err != nil {
		t.Fatalf("%d pages, %v", n, err)
	}
	text, err := os.ReadFile(dir + "/index.html")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`<a href="docs/index.html">b</a>`, `<a href="` + repository + `LICENSE">c</a>`, `<h1 id="a">A</h1>`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	delete(repo, "LICENSE")
	if _, err := build(repo, dir); err == nil || !strings.Contains(err.Error(), "LICENSE") {
		t.Errorf("a link to nothing: %v", err)
	}
}
