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

	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

// View is what a verb shows: a value for programs, and the same for people.
type View struct {
	Value any
	Print func(*term.Page)
}

// outputs are the values of --output.
var outputs = []string{"table", "wide", "json", "yaml"}

// Render is the view in the format that --output asks for.
func (v View) Render(format string, t term.Terminal) ([]byte, error) {
	switch format {
	case "json":
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		err := e.Encode(v.Value)
		return b.Bytes(), err
	case "yaml":
		return yamlOf(v.Value)
	}
	p := term.Page{Terminal: t, Wide: format == "wide"}
	if p.Wide {
		p.Width = 0 // all of it is asked for
	}
	v.Print(&p)
	return p.Bytes(), nil
}

func AddOutputFlag(cmd *cobra.Command) *string {
	output := cmd.Flags().StringP("output", "o", "table", "how to print: table, wide, json or yaml")
	cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(outputs, cobra.ShellCompDirectiveNoFileComp))
	return output
}

func CheckOutput(format string) error {
	if !slices.Contains(outputs, format) {
		return Usagef("--output %q: want table, wide, json or yaml", format)
	}
	return nil
}

// WatchEvery is how often --watch looks again.
const WatchEvery = time.Second

// Watch shows a view anew every second until ctx ends, which is no error. What
// goes wrong after the first time is shown too: it may pass.
func Watch(ctx context.Context, out io.Writer, title, format string, read func() (View, error)) error {
	v, err := read()
	if err != nil {
		return err
	}
	tick := time.NewTicker(WatchEvery)
	defer tick.Stop()
	for {
		t := term.Of(out)
		var frame []byte
		if err == nil {
			frame, err = v.Render(format, t)
		}
		if err != nil {
			frame = fmt.Appendf(nil, "%s\n", term.Printable(err.Error()))
		}
		if t.Width > 0 {
			frame = term.Frame(frame, title, t)
		}
		if _, err := out.Write(frame); err != nil {
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
		if t.Width == 0 && (format == "table" || format == "wide") {
			io.WriteString(out, "\n")
		}
	}
}
