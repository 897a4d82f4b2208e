package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/pulley-lb/pulley/plain"
)

// configure sets each flag of cmd that the command line does not give, from the environment or else from the
// configuration file. Its errors name the variable, or the file, line and key.
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

// TakesConfig says whether the environment and the configuration file apply to cmd. They do not apply to the commands
// that cobra adds, to help topics, and to version, which must work with any configuration.
func TakesConfig(cmd *cobra.Command) bool {
	for cmd.HasParent() && cmd.Parent().HasParent() {
		cmd = cmd.Parent()
	}
	switch cmd.Name() {
	case "completion", "help", "concepts", "version", "config", "man", cobra.ShellCompRequestCmd, cobra.ShellCompNoDescRequestCmd:
		return false
	}
	return true
}

// Configurable says whether f can be set by the environment and the configuration file. Not so: --help and --version;
// hidden flags, which are aliases; and flags that are marked CommandLineOnly.
func Configurable(f *pflag.Flag) bool {
	return f.Name != "help" && f.Name != "version" && !f.Hidden && f.Annotations[CommandLineOnly] == nil
}

// CommandLineOnly is the annotation of flags that have no environment variable and no configuration key: they say what
// a verb changes, and a variable that was set for another command must not change a tier or confirm a deletion.
const CommandLineOnly = "pulley-command-line-only"

// repeatable says whether a flag may be given more than once.
func repeatable(f *pflag.Flag) bool {
	_, ok := f.Value.(pflag.SliceValue)
	return ok
}

// setFlag sets f as the command line does, once for each value. No values empty it.
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

// invalidValue explains which values f accepts.
func invalidValue(f *pflag.Flag, value string, err error) error {
	accepted := map[string]string{
		"bool": "true or false", "duration": "a duration such as 30s or 5m", "float64": "a number",
		"int": "a whole number", "int64": "a whole number", "uint": "a whole number, 0 or more",
	}[f.Value.Type()]
	if accepted != "" {
		return fmt.Errorf("invalid value %q: must be %s", value, accepted)
	}
	if invalid, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		err = invalid.Unwrap()
	}
	return fmt.Errorf("invalid value %q: %w", value, err)
}

// readConfig returns the settings for cmd in the configuration file, by flag; none if there is no file. It checks the
// keys for all commands.
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
		commands := commandPath(cmd)
		f.read(top, commands[0], commands[1:], true)
	}
	return f.settings, errors.Join(f.errs...)
}

// CheckConfig says what is wrong with the configuration file that --config names: its keys, its values, and what the commands
// say of them that it has a section for. It returns the names of these. The root must be one that runs nothing afterwards,
// since its flags are set.
func CheckConfig(ctx context.Context, root *cobra.Command) (sections []string, err error) {
	path := root.PersistentFlags().Lookup("config").Value.String()
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, Usagef("%w", err)
	}
	top, err := ParseYAML(b)
	if err != nil {
		return nil, Usagef("%s:%w", path, err)
	}
	var problems []string
	add := func(err error) {
		for line := range strings.SplitSeq(plain.Error(err), "\n") {
			if err != nil && !slices.Contains(problems, line) {
				problems = append(problems, line)
			}
		}
	}
	ForEachCommand(root, func(cmd *cobra.Command) {
		if !TakesConfig(cmd) {
			return
		}
		settings, err := readConfig(cmd)
		if err != nil {
			add(err)
			return
		}
		valid := true
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if s, ok := settings[f.Name]; ok && Configurable(f) && !f.Changed {
				err := s.set(cmd, f)
				valid = valid && err == nil
				add(err)
			}
		})
		if !hasSection(top, cmd) {
			return
		}
		sections = append(sections, cmd.Name())
		if valid && cmd.PreRunE != nil {
			cmd.SetContext(ctx)
			if err := cmd.PreRunE(cmd, nil); err != nil {
				add(fmt.Errorf("%s: %s: %w", path, cmd.Name(), err))
			}
		}
	})
	if problems == nil {
		return sections, nil
	}
	return sections, Usagef("%s", strings.Join(problems, "\n"))
}

// hasSection says whether a file has a section for a command below the root.
func hasSection(top *yaml.Node, cmd *cobra.Command) bool {
	if top == nil || !cmd.HasParent() || cmd.Parent().HasParent() {
		return false
	}
	for i := 0; i+1 < len(top.Content); i += 2 {
		if top.Content[i].Value == cmd.Name() {
			return true
		}
	}
	return false
}

// configFile collects the settings for one command from a configuration file.
type configFile struct {
	path     string
	settings map[string]setting // by flag; the innermost section wins
	errs     []error
}

// read reads the section of cmd. Its keys are flags of cmd or of any command below it, and the sections of those
// commands. If the section applies to the command that runs, below is the path from cmd to it; other sections are only
// checked.
func (c *configFile) read(section *yaml.Node, cmd *cobra.Command, below []*cobra.Command, applies bool) {
	flags, commands := flagsUnder(cmd), subcommands(cmd)
	seen := map[string]bool{}
	type subsection struct {
		node *yaml.Node
		cmd  *cobra.Command
	}
	var sections []subsection
	for i := 0; i+1 < len(section.Content); i += 2 {
		s := setting{c.path, section.Content[i], resolveAlias(section.Content[i+1])}
		name := s.key.Value
		sub := commands[name]
		switch {
		case seen[name]:
			c.errs = append(c.errs, s.errorf("given twice"))
		case sub != nil && s.value.Kind == yaml.MappingNode:
			sections = append(sections, subsection{s.value, sub})
		case slices.Contains(flags, name) && s.value.Kind == yaml.MappingNode:
			c.errs = append(c.errs, s.errorf("must be a value, not a section"))
		case slices.Contains(flags, name):
			if applies {
				c.settings[name] = s
			}
		case sub != nil:
			c.errs = append(c.errs, s.errorf("is a command; its settings must be indented below it"))
		default:
			known := slices.Concat(flags, slices.Sorted(maps.Keys(commands)))
			c.errs = append(c.errs, fmt.Errorf("%s:%d: unknown key %q%s", c.path, s.key.Line, name, DidYouMean(name, known)))
		}
		seen[name] = true
	}
	// Sections are read after the keys of this level, and so take precedence.
	for _, s := range sections {
		if applies && len(below) > 0 && s.cmd == below[0] {
			c.read(s.node, s.cmd, below[1:], true)
			continue
		}
		c.read(s.node, s.cmd, nil, false)
	}
}

// setting is a key of the configuration file and its value.
type setting struct {
	file  string
	key   *yaml.Node
	value *yaml.Node
}

func (s setting) errorf(format string, args ...any) error {
	return fmt.Errorf("%s:%d: %s: %w", s.file, s.key.Line, s.key.Value, fmt.Errorf(format, args...))
}

// set sets f to the value of s.
func (s setting) set(cmd *cobra.Command, f *pflag.Flag) error {
	items := []*yaml.Node{s.value}
	switch {
	case s.value.Kind == yaml.SequenceNode && !repeatable(f):
		return s.errorf("must be one value, not a list")
	case s.value.Kind == yaml.SequenceNode:
		items = s.value.Content
	}
	var values []string
	for _, item := range items {
		item = resolveAlias(item)
		if item.Kind != yaml.ScalarNode {
			return s.errorf("must be a plain value")
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

// commandPath returns cmd and the commands above it, the root first.
func commandPath(cmd *cobra.Command) []*cobra.Command {
	path := []*cobra.Command{cmd}
	cmd.VisitParents(func(p *cobra.Command) { path = append(path, p) })
	slices.Reverse(path)
	return path
}

// subcommands returns the configurable commands below cmd by name.
func subcommands(cmd *cobra.Command) map[string]*cobra.Command {
	commands := map[string]*cobra.Command{}
	for _, sub := range cmd.Commands() {
		if TakesConfig(sub) {
			commands[sub.Name()] = sub
		}
	}
	return commands
}

// flagsUnder returns the names of the flags of cmd and of all commands below it, but not --config, which cannot be set
// in the file.
func flagsUnder(cmd *cobra.Command) []string {
	names := map[string]bool{}
	add := func(f *pflag.Flag) {
		if Configurable(f) && f.Name != "config" {
			names[f.Name] = true
		}
	}
	cmd.InheritedFlags().VisitAll(add)
	ForEachCommand(cmd, func(c *cobra.Command) { forEachOwnFlag(c, add) })
	return slices.Sorted(maps.Keys(names))
}

// EnvName returns the environment variable of a flag.
func EnvName(flag string) string {
	return "PULLEY_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// splitEnv returns the values in the environment variable of f: several, separated by newlines or semicolons, if the
// flag is repeatable.
func splitEnv(f *pflag.Flag, text string) []string {
	if !repeatable(f) {
		return []string{text}
	}
	var values []string
	for v := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == '\n' || r == ';' }) {
		if v = strings.TrimSpace(v); v != "" {
			values = append(values, v)
		}
	}
	return values
}

var envReference = regexp.MustCompile(`\$?\$\{[^}]*\}?`)

// expandEnv replaces each ${NAME} with the environment variable NAME, which must be set, and $${ with ${.
func expandEnv(s string) (string, error) {
	var err error
	s = envReference.ReplaceAllStringFunc(s, func(ref string) string {
		if strings.HasPrefix(ref, "$$") {
			return ref[1:]
		}
		name, closed := strings.CutSuffix(ref[2:], "}")
		v, ok := os.LookupEnv(name)
		switch {
		case !closed:
			err = fmt.Errorf("%q is not closed", ref)
		case !ok:
			err = fmt.Errorf("environment variable %q is not set", name)
		}
		return v
	})
	return s, err
}

// kubernetesEnv matches the variables that Kubernetes puts into the environment of each container for a service whose
// name begins with pulley.
var kubernetesEnv = regexp.MustCompile(`^PULLEY_(.*_)?(SERVICE_(HOST|PORT)(_.*)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_.*)?)$`)

// warnUnknownEnv logs environment variables that begin with PULLEY_ and belong to no flag. They are not errors: other
// programs may use the prefix.
func warnUnknownEnv(log *slog.Logger, root *cobra.Command) {
	known := []string{EnvName("config")}
	for _, flag := range flagsUnder(root) {
		known = append(known, EnvName(flag))
	}
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, "PULLEY_") || slices.Contains(known, name) || kubernetesEnv.MatchString(name) {
			continue
		}
		log := log.With("name", name)
		if near := nearest(name, known); near != "" {
			log = log.With("did_you_mean", near)
		}
		log.Warn("unknown environment variable")
	}
}

// ParseYAML parses a document that must be a mapping; it returns nil if b is empty. Its errors begin with the line
// number and a colon.
func ParseYAML(b []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, YAMLError(err)
	}
	top := doc.Content[0]
	if top.ShortTag() == "!!null" {
		return nil, nil
	}
	if top.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%d: must be 'key: value' lines", top.Line)
	}
	if err := dec.Decode(&more); err == nil {
		return nil, fmt.Errorf("%d: must be one YAML document, not several", more.Line)
	} else if !errors.Is(err, io.EOF) {
		return nil, YAMLError(err)
	}
	return top, nil
}

// YAMLError returns an error of the YAML library in the form "line: reason".
func YAMLError(err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		return errors.New(rest)
	}
	return errors.New(" " + text)
}

// resolveAlias returns the node that an alias stands for.
func resolveAlias(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}
