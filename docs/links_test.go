package docs_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

var (
	mdLink    = regexp.MustCompile(`!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)`)
	mdHeading = regexp.MustCompile(`^#{1,6} +(.*?) *#*$`)
	mdCode    = regexp.MustCompile("`[^`]*`")
)

// Every relative link of a page leads to a file of the repository, and every anchor to a heading of that page.
func TestLinks(t *testing.T) {
	anchors := make(map[string][]string) // by file
	links := make(map[string][]string)
	for _, file := range pages(t) {
		anchors[file], links[file] = scan(read(t, file))
	}
	for file, list := range links {
		for _, link := range list {
			if why := broken(file, link, anchors); why != "" {
				t.Errorf("%s: (%s): %s", file, link, why)
			}
		}
	}
}

// README.md of the documentation has a link to each page, so that the site lists it.
func TestIndex(t *testing.T) {
	_, links := scan(read(t, "README.md"))
	for _, file := range pages(t) {
		if file != "README.md" && !strings.HasPrefix(file, "..") && !slices.Contains(links, file) {
			t.Errorf("README.md has no link to %s", file)
		}
	}
}

func TestLinksThatAreBroken(t *testing.T) {
	anchors := map[string][]string{}
	anchors["a.md"], _ = scan("# One `two`: three\n```\n# no\n```\n## One\n## One\n")
	if want := []string{"one-two-three", "one", "one-1"}; !slices.Equal(anchors["a.md"], want) {
		t.Errorf("anchors %q, want %q", anchors["a.md"], want)
	}
	_, links := scan("[a](b.md) `[c](d)` ![e [f]](g.png#h)\n```\n[i](j)\n```\n[k](<l>)\n")
	if want := []string{"b.md", "g.png#h"}; !slices.Equal(links[:2], want) {
		t.Errorf("links %q, want %q", links, want)
	}
	for link, is := range map[string]bool{
		"https://example.com/x": false, "mailto:a@example.com": false, "#one": false, "a.md#one-1": false, "metrics.md": false,
		"#two": true, "a.md#two": true, "absent.md": true, "../absent": true, "/docs/metrics.md": true,
	} {
		if why := broken("a.md", link, anchors); (why != "") != is {
			t.Errorf("%s: %q, want broken %t", link, why, is)
		}
	}
}

// pages are the pages of the repository in Markdown, by their paths from here.
func pages(t *testing.T) (list []string) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && slices.Contains([]string{".git", "node_modules", "bin", "dist", "parts"}, d.Name()):
			return filepath.SkipDir
		case !d.IsDir() && filepath.Ext(path) == ".md":
			list = append(list, strings.TrimPrefix(path, "../docs/"))
		}
		return nil
	})
	if err != nil || len(list) < 10 {
		t.Fatalf("%d pages, %v", len(list), err)
	}
	return list
}

// scan returns the anchors and the links of a page. What is in code is neither.
func scan(page string) (anchors, links []string) {
	fence := false
	for line := range strings.Lines(page) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fence = !fence
		}
		if fence {
			continue
		}
		if m := mdHeading.FindStringSubmatch(line); m != nil {
			id := anchor(m[1])
			for n := 1; slices.Contains(anchors, id); n++ {
				id = fmt.Sprintf("%s-%d", anchor(m[1]), n)
			}
			anchors = append(anchors, id)
		}
		for _, m := range mdLink.FindAllStringSubmatch(mdCode.ReplaceAllString(line, "x"), -1) {
			links = append(links, m[1])
		}
	}
	return anchors, links
}

// anchor is the anchor that GitHub gives a heading.
func anchor(heading string) string {
	heading = mdLink.ReplaceAllStringFunc(heading, func(link string) string { return link[1:strings.Index(link, "](")] })
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
			return unicode.ToLower(r)
		}
		return -1
	}, heading)
}

// broken says what is wrong with a link of a file, or nothing.
func broken(file, link string, anchors map[string][]string) string {
	if strings.Contains(link, "://") || strings.HasPrefix(link, "mailto:") {
		return ""
	}
	path, id, _ := strings.Cut(link, "#")
	target := file
	if path != "" {
		if filepath.IsAbs(path) {
			return "is not relative"
		}
		target = filepath.Join(filepath.Dir(file), path)
		if rest, inside := strings.CutPrefix(target, "../docs/"); inside {
			target = rest
		}
		if _, known := anchors[target]; !known {
			if _, err := os.Stat(target); err != nil {
				return "there is no such file"
			}
		}
	}
	if id != "" && !slices.Contains(anchors[target], id) {
		return "there is no such heading"
	}
	return ""
}
