package policyfile

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"github.com/pulley-lb/pulley/policy"
)

var update = flag.Bool("update", false, "write docs/policy.schema.json")

const schemaFile = "../../../../docs/policy.schema.json"

// The published schema is that of the types.
func TestSchemaIsThatOfTheTypes(t *testing.T) {
	want := schema(t)
	if *update {
		if err := os.WriteFile(schemaFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is out of date: go test ./cmd/pulley/internal/policyfile -run Schema -update", schemaFile)
	}
}

// What Parse accepts the schema accepts, and the other way round, except for rules that connect several values.
func TestSchemaAgreesWithParse(t *testing.T) {
	compiler := jsonschema.NewCompiler()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema(t)))
	if err != nil {
		t.Fatal(err)
	}
	if err := compiler.AddResource("policy.json", doc); err != nil {
		t.Fatal(err)
	}
	sch, err := compiler.Compile("policy.json")
	if err != nil {
		t.Fatal(err)
	}
	for text, valid := range map[string]bool{
		Format(policy.Default()): true,
		Format(everything()):     true,
		"pools: {}\n":            true,
		"tiers: [{name: standard}, {name: night, share: 3, deadline: 1h30m}]\n":                                   true,
		"routes: {chat: {to: [{pool: a}], mirror: [{pool: b}], shift: {to: a, abort: ['p95_ttft>1.5x+50ms']}}}\n": true,
		"session_headers: [X-Session-Id]\n":                                                                       true,
		"routs: {}\n":                                                                                             false,
		"tiers: [{name: standard, share: many}]\n":                                                                false,
		"tiers: [{name: standard, share: 1.5}]\n":                                                                 false,
		"tiers: [{name: standard, share: 0}]\n":                                                                   false,
		"tiers: [{name: standard, max_queue: 90001}]\n":                                                           false,
		"tiers: [{name: standard, reserve: 91}]\n":                                                                false,
		"tiers: [{name: Standard}, {name: standard}]\n":                                                           false,
		"tiers: [{name: standard, storage: tape}]\n":                                                              false,
		"tiers: [{name: standard, deadline: 60}]\n":                                                               false,
		"tiers: [{name: standard, deadline: soon}]\n":                                                             false,
		"tiers: [{share: 1}, {name: standard}]\n":                                                                 false,
		"pools: {a: {balance: fair}}\n":                                                                           false,
		"pools: {a: {affinity: maybe}}\n":                                                                         false,
		"pools: {a: {spill: [{pool: b, penalty: 10}]}}\n":                                                         false,
		"pools: {a: {paused: maybe}}\n":                                                                           false,
		"routes: {chat: {to: {a: 1}}}\n":                                                                          false,
		"routes: {chat: {to: []}}\n":                                                                              false,
		"routes: {chat: {to: [{pool: a, weight: -1}]}}\n":                                                         false,
		"routes: {chat: {to: [{pool: a}], sticky_by: ip}}\n":                                                      false,
		"routes: {chat: {to: [{pool: a}], mirror: [{pool: b, percent: 101}]}}\n":                                  false,
		"workers: {gpu-1: {weight: -1}}\n":                                                                        false,
		"workers: [gpu-1]\n":                                                                                      false,
	} {
		var value any
		if err := yaml.Unmarshal([]byte(text), &value); err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(value) // as an editor sees it
		if err != nil {
			t.Fatal(err)
		}
		instance, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		says := sch.Validate(instance)
		if (says == nil) != valid {
			t.Errorf("the schema says %v, want valid %t, of\n%s", says, valid, text)
		}
		if _, err := Parse("p.yaml", []byte(text)); (err == nil) != valid {
			t.Errorf("Parse says %v, want valid %t, of\n%s", err, valid, text)
		}
	}
}

// object is a JSON object whose keys stay in order.
type object []member

type member struct {
	key   string
	value any
}

func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		k, _ := json.Marshal(m.key)
		v, err := json.Marshal(m.value)
		if err != nil {
			return nil, err
		}
		b.Write(k)
		b.WriteByte(':')
		b.Write(v)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// schema makes the JSON Schema of a policy file from the types of package policy, their comments and the rules of Check.
func schema(t *testing.T) []byte {
	t.Helper()
	s := schemas{comments: comments(t), defs: map[string]any{}}
	top := s.of(reflect.TypeFor[policy.Policy](), "")
	doc := slices.Concat(object{{"$schema", "https://json-schema.org/draft/2020-12/schema"}, {"title", "Policy of Pulley"}}, top.(object), object{{"$defs", s.defs}})
	b, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(bytes.ReplaceAll(bytes.ReplaceAll(b, []byte(`\u003e`), []byte(">")), []byte(`\u003c`), []byte("<")), '\n')
}

type schemas struct {
	comments map[string]string // by type, or type.Field
	defs     map[string]any
}

// required are the keys that a file must have; all others may be left out.
var required = map[reflect.Type][]string{
	reflect.TypeFor[policy.Tier](): {"name"}, reflect.TypeFor[policy.Spill](): {"pool"}, reflect.TypeFor[policy.Route](): {"to"},
	reflect.TypeFor[policy.Target](): {"pool"}, reflect.TypeFor[policy.Mirror](): {"pool"}, reflect.TypeFor[policy.Shift](): {"to"},
}

// rules are the rules of policy.Check about single values, by type and field.
var rules = map[string]object{
	"Tier.Name": {{"pattern", "^[a-z0-9][a-z0-9-]{0,31}$"}}, "Tier.Share": between(1, 1_000_000), "Tier.Reserve": between(0, 90),
	"Tier.MaxQueue": between(1, policy.MaxQueueLimit), "Tier.Retries": between(0, 100), "Tier.Storage": enum(policy.Memory, policy.File),
	"Pool.Balance": enum(policy.Balances...), "Pool.Affinity": enum(policy.AffinityAuto, policy.AffinitySession, policy.AffinityOff),
	"Spill.Penalty": between(0, policy.Rungs-1), "Target.Weight": between(0, 1e9), "Mirror.Percent": between(0, 100), "Worker.Weight": between(0, 1e6),
	"Route.To": {{"minItems", 1}}, "Route.StickyBy": enum(policy.StickySession, policy.StickyTenant, policy.StickyNone),
	"Shift.By": between(0.01, 100), "Shift.MinSample": {{"minimum", 0}}, "Shift.State": enum(policy.ShiftRunning, policy.ShiftDone, policy.ShiftAborted),
	"Shift.Abort": {{"examples", [][]string{{"error_rate>1%", "p95_ttft>1.5x+50ms"}}}},
}

func between(low, high float64) object { return object{{"minimum", low}, {"maximum", high}} }

func enum[T ~string](values ...T) object { return object{{"enum", values}} }

// of returns the schema of a type; at is the type and the field whose value it is.
func (s *schemas) of(t reflect.Type, at string) any {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	var o object
	switch {
	case t == reflect.TypeFor[policy.Duration]():
		o = object{{"type", "string"}, {"pattern", `^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$|^0$`}, {"examples", []string{"30s", "1h30m"}}}
	case t == reflect.TypeFor[time.Time]():
		o = object{{"type", "string"}, {"format", "date-time"}}
	case t.Kind() == reflect.Struct && at != "": // described once
		if s.defs[t.Name()] == nil {
			s.defs[t.Name()] = object{}
			s.defs[t.Name()] = s.of(t, "")
		}
		return object{{"$ref", "#/$defs/" + t.Name()}}
	case t.Kind() == reflect.Struct:
		var fields object
		for f := range t.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			fields = append(fields, member{name, s.field(t.Name()+"."+f.Name, f.Type)})
		}
		o = object{{"type", "object"}, {"description", s.comments[t.Name()]}, {"additionalProperties", false}, {"properties", fields}}
		if names := required[t]; names != nil {
			o = append(o, member{"required", names})
		}
	case t.Kind() == reflect.Map:
		o = object{{"type", "object"}, {"additionalProperties", s.of(t.Elem(), at+".")}}
	case t.Kind() == reflect.Slice:
		o = object{{"type", "array"}, {"items", s.of(t.Elem(), at+".")}}
	default:
		o = object{{"type", map[reflect.Kind]string{reflect.String: "string", reflect.Int: "integer", reflect.Float64: "number", reflect.Bool: "boolean"}[t.Kind()]}}
	}
	return append(o, rules[at]...)
}

// field returns the schema of a field with its comment.
func (s *schemas) field(at string, t reflect.Type) any {
	o := s.of(t, at).(object)
	if text := s.comments[at]; text != "" {
		o = append(object{{"description", text}}, o...)
	}
	return o
}

// comments reads the comments of types and fields in package policy.
func comments(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("../../../../policy/*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(err, files)
	}
	found := make(map[string]string)
	text := func(groups ...*ast.CommentGroup) string {
		for _, g := range groups {
			if s := strings.Join(strings.Fields(g.Text()), " "); s != "" {
				return s
			}
		}
		return ""
	}
	for _, path := range files {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.TYPE {
				continue
			}
			for _, spec := range g.Specs {
				ts := spec.(*ast.TypeSpec)
				found[ts.Name.Name] = text(ts.Doc, g.Doc)
				st, ok := ts.Type.(*ast.StructType)
				if !ok {
					continue
				}
				for _, f := range st.Fields.List {
					for _, name := range f.Names {
						found[fmt.Sprint(ts.Name.Name, ".", name.Name)] = text(f.Doc, f.Comment)
					}
				}
			}
		}
	}
	return found
}
