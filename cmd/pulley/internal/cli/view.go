package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/plain"
)

// The formats that --output may have. Each command has some of them.
const (
	Table = "table"
	Wide  = "wide" // a table with all columns
	Text  = "text"
	JSON  = "json"
	YAML  = "yaml"
	CSV   = "csv"
)

// outputFormats is the annotation of the flag --output with the formats that its command has.
const outputFormats = "pulley-output-formats"

// AddOutput declares the flag --output with the formats that cmd has; the first is the default. Others are refused
// before the command runs.
func AddOutput(cmd *cobra.Command, formats ...string) *string {
	output := cmd.Flags().StringP("output", "o", formats[0], "output format: "+OneOf(formats))
	cmd.Flags().SetAnnotation("output", outputFormats, formats)
	CompleteFixed(cmd, "output", formats...)
	return output
}

// checkOutput refuses a format that cmd does not have.
func checkOutput(cmd *cobra.Command) error {
	f := cmd.Flags().Lookup("output")
	if f == nil || slices.Contains(f.Annotations[outputFormats], f.Value.String()) {
		return nil
	}
	return Usagef("--output %q: must be %s", f.Value, OneOf(f.Annotations[outputFormats]))
}

// View is what a verb shows: a value for programs, and a function that prints the same for people.
type View struct {
	Value any
	Print func(*term.Page)
}

// Show prints a view on the standard output of cmd.
func Show(cmd *cobra.Command, v View, format string) error {
	out := cmd.OutOrStdout()
	b, err := v.render(format, term.Of(out))
	if err != nil {
		return err
	}
	_, err = out.Write(b)
	return err
}

// render returns the view in a format.
func (v View) render(format string, t term.Terminal) ([]byte, error) {
	switch format {
	case JSON:
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		err := e.Encode(v.Value)
		return b.Bytes(), err
	case YAML:
		return yamlOf(v.Value)
	}
	p := term.Page{Terminal: t, Wide: format == Wide}
	if p.Wide {
		p.Width = 0 // a wide table is not shortened
	}
	v.Print(&p)
	return p.Bytes(), nil
}

// WatchEvery is the interval of --watch.
const WatchEvery = time.Second

// watch reads and prints a view every second until ctx ends, which is not an error. If the first read fails, watch
// fails; later errors are shown, and it continues.
func watch(ctx context.Context, out io.Writer, title, format string, read func() (View, error)) error {
	v, err := read()
	if err != nil {
		return err
	}
	tick := time.NewTicker(WatchEvery)
	defer tick.Stop()
	for {
		t := term.Of(out)
		var text []byte
		if err == nil {
			text, err = v.render(format, t)
		}
		if err != nil {
			text = fmt.Appendf(nil, "%s\n", term.Printable(plain.Error(err)))
		}
		if t.Width > 0 {
			text = term.Frame(text, title, t)
		}
		if _, err := out.Write(text); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if v, err = read(); ctx.Err() != nil {
			return nil
		}
		if t.Width == 0 && (format == Table || format == Wide) {
			io.WriteString(out, "\n")
		}
	}
}

// EncodeYAML encodes a value with an indent of two spaces.
func EncodeYAML(value any) ([]byte, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(value); err != nil {
		return nil, err
	}
	return b.Bytes(), e.Close()
}

// yamlOf encodes a value as YAML with the names and the order of its JSON.
func yamlOf(value any) ([]byte, error) {
	b, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil { // JSON is YAML
		return nil, err
	}
	var blockStyle func(n *yaml.Node)
	blockStyle = func(n *yaml.Node) {
		n.Style = 0
		for _, c := range n.Content {
			blockStyle(c)
		}
	}
	blockStyle(&doc)
	return EncodeYAML(&doc)
}
