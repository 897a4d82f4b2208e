package docs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/doc"
	"go/doc/comment"
	"go/parser"
	"go/printer"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The pages of the reference that are made from the code are those of the code.
func TestGeneratedReference(t *testing.T) {
	for file, want := range map[string]string{
		"reference/policy.md": policyReference(t),
		"reference/wire.md":   wireReference(t),
	} {
		if *update {
			if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != want {
			t.Errorf("%s is out of date (%v): go test ./docs -run GeneratedReference -update", file, err)
		}
	}
}

// node is a part of a JSON Schema.
type node struct {
	Ref         string `json:"$ref"`
	Type        string
	Description string
	Enum        []any
	Pattern     string
	Minimum     *json.Number
	Maximum     *json.Number
	Default     any
	Items       *node
	Additional  json.RawMessage `json:"additionalProperties"` // false, or a node
	Properties  json.RawMessage
	Required    []string
	Defs        json.RawMessage `json:"$defs"`
}

// named is a member of an object, in the order of the file.
type named struct {
	name string
	node node
}

func members(t *testing.T, object json.RawMessage) (list []named) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(object))
	if _, err := d.Token(); err != nil {
		t.Fatal(err)
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		var n node
		if err := d.Decode(&n); err != nil {
			t.Fatal(err)
		}
		list = append(list, named{name.(string), n})
	}
	return list
}

// policyReference is policy.schema.json as tables.
func policyReference(t *testing.T) string {
	var root node
	text, err := os.ReadFile("policy.schema.json")
	if err == nil {
		err = json.Unmarshal(text, &root)
	}
	if err != nil {
		t.Fatal(err)
	}
	var page strings.Builder
	page.WriteString(`# Policy

The keys of a policy file: ` + "`pulley policy export > policy.yaml`, `pulley policy validate policy.yaml`, `pulley policy apply -f policy.yaml`" + `.
A file replaces the whole policy; a key that is left out has its default. [examples/policy.yaml](../../examples/policy.yaml) is one;
[policy.schema.json](../policy.schema.json) is its JSON Schema, from which this page is generated (` + "`go test ./docs -update`" + `).

`)
	propertyTable(t, &page, root)
	for _, def := range members(t, root.Defs) {
		fmt.Fprintf(&page, "\n## %s\n\n%s\n\n", def.name, sentence(def.node.Description))
		propertyTable(t, &page, def.node)
	}
	return page.String()
}

func propertyTable(t *testing.T, page *strings.Builder, n node) {
	t.Helper()
	page.WriteString("| key | value | meaning |\n|---|---|---|\n")
	for _, p := range members(t, n.Properties) {
		name := "`" + p.name + "`"
		if slices.Contains(n.Required, p.name) {
			name += ", required"
		}
		fmt.Fprintf(page, "| %s | %s | %s |\n", name, kind(t, p.node), cell(withKey(p)))
	}
}

// withKey is a description that names the key as the file does, and not as the Go type.
func withKey(p named) string {
	var field strings.Builder
	for word := range strings.SplitSeq(p.name, "_") {
		field.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	if rest, is := strings.CutPrefix(p.node.Description, field.String()+" "); is {
		return "`" + p.name + "` " + rest
	}
	return p.node.Description
}

// kind says which values a key may have.
func kind(t *testing.T, n node) string {
	t.Helper()
	var elements node
	switch {
	case n.Ref != "":
		name := strings.TrimPrefix(n.Ref, "#/$defs/")
		return fmt.Sprintf("[%s](#%s)", name, strings.ToLower(name))
	case len(n.Enum) > 0:
		var values []string
		for _, v := range n.Enum {
			values = append(values, fmt.Sprintf("`%v`", v))
		}
		return strings.Join(values, ", ")
	case n.Items != nil:
		return "list of " + kind(t, *n.Items)
	case n.Type == "object" && json.Unmarshal(n.Additional, &elements) == nil:
		return "names, each with a " + kind(t, elements)
	case strings.Contains(n.Pattern, "ms|s|m|h"):
		return "duration, such as `1m30s`"
	case n.Pattern != "":
		return n.Type + ", `" + cell(n.Pattern) + "`"
	case n.Minimum != nil && n.Maximum != nil:
		return fmt.Sprintf("%s, %s to %s", n.Type, *n.Minimum, *n.Maximum)
	case n.Minimum != nil:
		return fmt.Sprintf("%s, at least %s", n.Type, *n.Minimum)
	}
	return n.Type
}

func cell(s string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ", "<", "&lt;").Replace(s)
}

func sentence(s string) string { return strings.NewReplacer("\n", " ", "<", "&lt;").Replace(s) }

// wireReference is the documentation of package subjects: the specification, and the messages that are JSON.
func wireReference(t *testing.T) string {
	files := token.NewFileSet()
	sources, err := filepath.Glob("../subjects/*.go")
	if err != nil {
		t.Fatal(err)
	}
	var parsed []*ast.File
	for _, source := range sources {
		file, err := parser.ParseFile(files, source, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, file)
	}
	pkg, err := doc.NewFromFiles(files, parsed, module+"subjects")
	if err != nil {
		t.Fatal(err)
	}
	out := pkg.Printer()
	out.HeadingLevel = 2
	out.HeadingID = func(*comment.Heading) string { return "" }
	out.DocLinkURL = func(*comment.DocLink) string { return "" }
	spaces := printer.Config{Mode: printer.UseSpaces, Tabwidth: 4}
	var page strings.Builder
	page.WriteString("# Wire\n\nGenerated from package subjects: `go test ./docs -update`. The messages in JSON are [below](#messages).\n\n")
	page.Write(out.Markdown(pkg.Parser().Parse(pkg.Doc)))
	page.WriteString("\n## Messages\n\nAs Go types, with the names of the fields in JSON.\n\n```go\n")
	for i, message := range pkg.Types {
		var source strings.Builder
		message.Decl.Doc = nil // printed with the type's comment
		if err := spaces.Fprint(&source, files, &printer.CommentedNode{Node: message.Decl, Comments: commentsIn(parsed, message.Decl)}); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(source.String(), "`json:\"") {
			continue
		}
		if i > 0 {
			page.WriteString("\n")
		}
		for line := range strings.Lines(message.Doc) {
			page.WriteString("// " + line)
		}
		page.WriteString(source.String() + "\n")
	}
	page.WriteString("```\n")
	return page.String()
}

// commentsIn are the comments of a declaration.
func commentsIn(files []*ast.File, decl ast.Node) (list []*ast.CommentGroup) {
	for _, file := range files {
		for _, group := range file.Comments {
			if group.Pos() > decl.Pos() && group.End() < decl.End() {
				list = append(list, group)
			}
		}
	}
	return list
}
