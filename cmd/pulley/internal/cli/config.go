package cli

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// configure sets each flag of cmd that the command line does not give: from
// the environment, or else from the configuration file. Its errors name the
// variable, or the file, line and key.
func configure(cmd *cobra.Command) error {
	file, err := readConfig(cmd)
	if err != nil {
		return err
	}
	var errs []error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Changed || !Configurable(f) || f.Name == "config" {
			return
		}
		if text := os.Getenv(EnvName(f.Name)); text != "" {
			if err := setFlag(cmd, f, splitEnv(f, text)); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", EnvName(f.Name), err))
			}
		} else if s, ok := file[f.Name]; ok {
			errs = append(errs, s.set(cmd, f))
		}
	})
	return errors.Join(errs...)
}

// TakesConfig is false for the commands that cobra adds, and for version,
// which must work with any configuration.
func TakesConfig(cmd *cobra.Command) bool {
	for cmd.HasParent() && cmd.Parent().HasParent() {
		cmd = cmd.Parent()
	}
	switch cmd.Name() {
	case "completion", "help", "version", cobra.ShellCompRequestCmd, cobra.ShellCompNoDescRequestCmd:
		return false
	}
	return true
}

// Configurable is false for --help, for aliases, which are hidden and belong to
// the command line alone, and for what an operator's verb is to do (typedOnly).
func Configurable(f *pflag.Flag) bool {
	return f.Name != "help" && f.Name != "version" && !f.Hidden && f.Annotations[CommandLineOnly] == nil
}

// CommandLineOnly marks flags that say what a verb is to do: no variable that was set
// for something else may change a tier, or answer for the operator.
const CommandLineOnly = "pulley-typed-only"

// repeatable is how a flag that may be given more than once is known.
func repeatable(f *pflag.Flag) bool {
	_, ok := f.Value.(pflag.SliceValue)
	return ok
}

// setFlag sets f as the command line would, once for each value.
func setFlag(cmd *cobra.Command, f *pflag.Flag, values []string) error {
	if list, ok := f.Value.(pflag.SliceValue); ok && len(values) == 0 {
		f.Changed = true
		return list.Replace(nil)
	}
	for _, v := range values {
		if err := cmd.Flags().Set(f.Name, v); err != nil {
			return invalidValue(f, v, err)
		}
	}
	return nil
}

// invalidValue says what f wants instead of value.
func invalidValue(f *pflag.Flag, value string, err error) error {
	want := map[string]string{
		"bool": "true or false", "duration": "a duration such as 30s", "float64": "a number",
		"int": "a whole number", "int64": "a whole number", "uint": "a whole number that is not negative",
	}[f.Value.Type()]
	if want != "" {
		return fmt.Errorf("invalid value %q: want %s", value, want)
	}
	if invalid, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		err = invalid.Unwrap()
	}
	return fmt.Errorf("invalid value %q: %w", value, err)
}

// readConfig returns the settings in the configuration file, if there is one,
// that hold for cmd, by flag. It checks the keys of all commands.
func readConfig(cmd *cobra.Command) (map[string]setting, error) {
	path := cmd.Flag("config").Value.String()
	if path == "" {
		path = os.Getenv(EnvName("config"))
	}
	if path == "" {
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	top, err := ParseYAML(b)
	if err != nil {
		return nil, fmt.Errorf("%s:%w", path, err)
	}
	f := configFile{path: path, settings: map[string]setting{}}
	if top != nil {
		way := commandPath(cmd)
		f.read(top, way[0], way[1:], true)
	}
	return f.settings, errors.Join(f.errs...)
}

// configFile gathers what a configuration file says for one command.
type configFile struct {
	path     string
	settings map[string]setting // by flag; the innermost section's
	errs     []error
}

// read takes the section of cmd: its keys are flags of cmd or of any command
// below it, or the sections of those. If it applies, below is the way from cmd
// to the command that runs; other sections are read for their errors only.
func (c *configFile) read(section *yaml.Node, cmd *cobra.Command, below []*cobra.Command, applies bool) {
	flags := flagsUnder(cmd)
	seen := map[string]bool{}
	type subsection struct {
		node *yaml.Node
		cmd  *cobra.Command
	}
	var sections []subsection
	for i := 0; i+1 < len(section.Content); i += 2 {
		s := setting{c.path, section.Content[i], resolveAlias(section.Content[i+1])}
		name := s.key.Value
		sub := subcommand(cmd, name)
		switch {
		case seen[name]:
			c.errs = append(c.errs, s.errorf("given twice"))
		case sub != nil && s.value.Kind == yaml.MappingNode:
			sections = append(sections, subsection{s.value, sub})
		case slices.Contains(flags, name) && s.value.Kind == yaml.MappingNode:
			c.errs = append(c.errs, s.errorf("want a value, not a section"))
		case slices.Contains(flags, name):
			if applies {
				c.settings[name] = s
			}
		case sub != nil:
			c.errs = append(c.errs, s.errorf("is a command: want its settings indented below"))
		default:
			known := slices.Concat(flags, subcommandNames(cmd))
			c.errs = append(c.errs, fmt.Errorf("%s:%d: unknown key %q%s", c.path, s.key.Line, name, DidYouMean(name, known)))
		}
		seen[name] = true
	}
	// After the keys of this level, so that theirs win.
	for _, s := range sections {
		if applies && len(below) > 0 && s.cmd == below[0] {
			c.read(s.node, s.cmd, below[1:], true)
			continue
		}
		c.read(s.node, s.cmd, nil, false)
	}
}

// setting is a key of the configuration file with its value, and where it stands.
type setting struct {
	file  string
	key   *yaml.Node
	value *yaml.Node
}

func (s setting) errorf(format string, args ...any) error {
	return fmt.Errorf("%s:%d: %s: %w", s.file, s.key.Line, s.key.Value, fmt.Errorf(format, args...))
}

// set gives f the value of s.
func (s setting) set(cmd *cobra.Command, f *pflag.Flag) error {
	items := []*yaml.Node{s.value}
	switch {
	case s.value.Kind == yaml.SequenceNode && !repeatable(f):
		return s.errorf("want one value, not a list")
	case s.value.Kind == yaml.SequenceNode:
		items = s.value.Content
	}
	var values []string
	for _, item := range items {
		item = resolveAlias(item)
		if item.Kind != yaml.ScalarNode {
			return s.errorf("want a plain value")
		}
		if item.ShortTag() == "!!null" {
			return s.errorf("has no value")
		}
		v, err := expandEnv(item.Value)
		if err != nil {
			return s.errorf("%w", err)
		}
		values = append(values, v)
	}
	if err := setFlag(cmd, f, values); err != nil {
		return s.errorf("%w", err)
	}
	return nil
}

// commandPath is cmd with those above it, the root first.
func commandPath(cmd *cobra.Command) []*cobra.Command {
	path := []*cobra.Command{cmd}
	cmd.VisitParents(func(p *cobra.Command) { path = append(path, p) })
	slices.Reverse(path)
	return path
}

func subcommand(cmd *cobra.Command, name string) *cobra.Command {
	for _, sub := range cmd.Commands() {
		if sub.Name() == name && TakesConfig(sub) {
			return sub
		}
	}
	return nil
}

func subcommandNames(cmd *cobra.Command) (names []string) {
	for _, sub := range cmd.Commands() {
		if TakesConfig(sub) {
			names = append(names, sub.Name())
		}
	}
	return names
}

// flagsUnder is the names of the flags that cmd or any command below it takes,
// without --config, which no file can hold.
func flagsUnder(cmd *cobra.Command) []string {
	names := map[string]bool{}
	add := func(f *pflag.Flag) {
		if Configurable(f) && f.Name != "config" {
			names[f.Name] = true
		}
	}
	cmd.InheritedFlags().VisitAll(add)
	ForEachCommand(cmd, func(c *cobra.Command) { forEachOwnFlag(c, add) })
	sorted := make([]string, 0, len(names))
	for n := range names {
		sorted = append(sorted, n)
	}
	slices.Sort(sorted)
	return sorted
}
