// Command site writes the documentation as static pages: make site. It is a module of its own, so that Pulley's does not require
// a Markdown library.
package main

import (
	"bytes"
	_ "embed"
	"flag"
	"fmt"
	"html/template"
	"io/fs"
	"log"
	"os"
	"path"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/parser"
	"github.com/yuin/goldmark/renderer/html"
	"github.com/yuin/goldmark/text"
)

// repository is where links to files that are no pages lead.
const repository = "https://github.com/pulley-lb/pulley/blob/main/"

//go:embed page.html
var layout string

var (
	pageTemplate = template.Must(template.New("page").Parse(layout))
	markdown     = goldmark.New(goldmark.WithExtensions(extension.GFM), goldmark.WithParserOptions(parser.WithAutoHeadingID()),
		goldmark.WithRendererOptions(html.WithUnsafe())) // the pages are ours; they have comments in HTML
)

func main() {
	from := flag.String("from", ".", "`directory` of the repository")
	out := flag.String("out", "dist/site", "`directory` for the site")
	flag.Parse()
	n, err := build(os.DirFS(*from), *out)
	if err != nil {
		log.Fatalf("site: %v", err)
	}
	fmt.Printf("%d pages in %s\n", n, *out)
}

// page is a page of the site. Paths have slashes, and begin at the root of the repository or of the site.
type page struct {
	source, target string
	text           []byte
	tree           ast.Node
	title          string
}

// build writes the pages of a repository and the images that they show. It returns how many pages there are.
func build(repo fs.FS, out string) (int, error) {
	pages, err := read(repo)
	if err != nil {
		return 0, err
	}
	images := make(map[string]bool)
	for _, p := range pages {
		if err := p.relink(repo, pages, images); err != nil {
			return 0, err
		}
	}
	for _, p := range pages {
		text, err := p.render(pages)
		if err == nil {
			err = write(filepath.Join(out, filepath.FromSlash(p.target)), text)
		}
		if err != nil {
			return 0, fmt.Errorf("%s: %w", p.source, err)
		}
	}
	for image := range images {
		text, err := fs.ReadFile(repo, image)
		if err == nil {
			err = write(filepath.Join(out, filepath.FromSlash(image)), text)
		}
		if err != nil {
			return 0, err
		}
	}
	return len(pages), nil
}

// read reads the pages: all of docs, those at the root, and the one of the examples.
func read(repo fs.FS) (map[string]*page, error) {
	pages := make(map[string]*page)
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md", "examples/*.md"} {
		sources, err := fs.Glob(repo, pattern)
		if err != nil {
			return nil, err
		}
		for _, source := range sources {
			content, err := fs.ReadFile(repo, source)
			if err != nil {
				return nil, err
			}
			p := &page{source: source, target: targetOf(source), text: content}
			p.tree = markdown.Parser().Parse(text.NewReader(content), parser.WithContext(parser.NewContext(parser.WithIDs(make(anchors)))))
			p.title = p.firstHeading()
			pages[source] = p
		}
	}
	if pages["README.md"] == nil || pages["docs/README.md"] == nil {
		return nil, fmt.Errorf("no README.md, or no docs/README.md: is this the repository?")
	}
	return pages, nil
}

// targetOf is where a page of the repository is in the site.
func targetOf(source string) string {
	dir, file := path.Split(source)
	if file == "README.md" {
		return dir + "index.html"
	}
	return strings.TrimSuffix(source, ".md") + ".html"
}

func (p *page) firstHeading() string {
	for n := p.tree.FirstChild(); n != nil; n = n.NextSibling() {
		if n.Kind() == ast.KindHeading {
			return p.plain(n)
		}
	}
	return p.source
}

// plain is the text of a node, without its markup.
func (p *page) plain(n ast.Node) string {
	var b strings.Builder
	ast.Walk(n, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if t, is := n.(*ast.Text); is && entering {
			b.Write(t.Segment.Value(p.text))
		}
		return ast.WalkContinue, nil
	})
	return b.String()
}

// relink turns links to pages into links to their place in the site, and links to other files into links to the repository.
func (p *page) relink(repo fs.FS, pages map[string]*page, images map[string]bool) error {
	return ast.Walk(p.tree, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if !entering {
			return ast.WalkContinue, nil
		}
		var err error
		switch n := n.(type) {
		case *ast.Link:
			var to string
			to, err = p.link(repo, pages, string(n.Destination))
			n.Destination = []byte(to)
		case *ast.Image:
			if image := path.Join(path.Dir(p.source), string(n.Destination)); !strings.Contains(string(n.Destination), "://") {
				images[image] = true
			}
		}
		return ast.WalkContinue, err
	})
}

func (p *page) link(repo fs.FS, pages map[string]*page, to string) (string, error) {
	file, id, _ := strings.Cut(to, "#")
	if file == "" || strings.Contains(file, ":") {
		return to, nil
	}
	source := path.Join(path.Dir(p.source), file)
	if id != "" {
		id = "#" + id
	}
	if target := pages[source]; target != nil {
		return relative(p.target, target.target) + id, nil
	}
	if _, err := fs.Stat(repo, source); err != nil {
		return "", fmt.Errorf("%s: link to %s: %w", p.source, to, err)
	}
	return repository + source + id, nil
}

// relative is the link from one page of the site to another.
func relative(from, to string) string {
	return strings.Repeat("../", strings.Count(from, "/")) + to
}

// entry is one of the list beside each page.
type entry struct {
	Link, Name string
	Here       bool
}

// group is a part of that list.
type group struct {
	Name    string
	Entries []entry
}

func (p *page) render(pages map[string]*page) ([]byte, error) {
	var body, out bytes.Buffer
	if err := markdown.Renderer().Render(&body, p.text, p.tree); err != nil {
		return nil, err
	}
	err := pageTemplate.Execute(&out, map[string]any{
		"Title": p.title, "Home": relative(p.target, "index.html"), "Groups": p.contents(pages), "Body": template.HTML(body.String()),
	})
	return out.Bytes(), err
}

// contents are the links of docs/README.md: a paragraph is a group, and its first bold words are its name.
func (p *page) contents(pages map[string]*page) (groups []group) {
	index := pages["docs/README.md"]
	for n := index.tree.FirstChild(); n != nil; n = n.NextSibling() {
		var g group
		ast.Walk(n, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
			switch n := n.(type) {
			case *ast.Emphasis:
				if entering && g.Name == "" {
					g.Name = strings.TrimSuffix(index.plain(n), ".")
				}
			case *ast.Link:
				to := path.Join(path.Dir(index.target), string(n.Destination))
				for _, other := range pages {
					if entering && other.target == to {
						g.Entries = append(g.Entries, entry{relative(p.target, to), other.title, other == p})
					}
				}
			}
			return ast.WalkContinue, nil
		})
		if g.Name != "" && len(g.Entries) > 0 {
			groups = append(groups, g)
		}
	}
	return groups
}

func write(file string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o644)
}

// anchors gives headings the anchors that they have on GitHub, since links name these.
type anchors map[string]bool

func (a anchors) Generate(value []byte, _ ast.NodeKind) []byte {
	base := strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
			return unicode.ToLower(r)
		}
		return -1
	}, string(value))
	id := base
	for n := 1; a[id]; n++ {
		id = fmt.Sprintf("%s-%d", base, n)
	}
	a[id] = true
	return []byte(id)
}

func (a anchors) Put(value []byte) { a[string(value)] = true }
