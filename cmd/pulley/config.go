package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

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
		if f.Changed || !configurable(f) || f.Name == "config" {
			return
		}
		if text := os.Getenv(envName(f.Name)); text != "" {
			if err := setFlag(cmd, f, splitEnv(f, text)); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", envName(f.Name), err))
			}
		} else if s, ok := file[f.Name]; ok {
			errs = append(errs, s.set(cmd, f))
		}
	})
	return errors.Join(errs...)
}

// configurable is false for --help, for aliases, which are hidden and belong to
// the command line alone, and for what an operator's verb is to do (typedOnly).
func configurable(f *pflag.Flag) bool {
	return f.Name != "help" && f.Name != "version" && !f.Hidden && f.Annotations[typedOnly] == nil
}

// typedOnly marks flags that say what a verb is to do: no variable that was set
// for something else may change a tier, or answer for the operator.
const typedOnly = "pulley-typed-only"

// envName is the environment variable of a flag.
func envName(flag string) string {
	return "PULLEY_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// splitEnv is the values of f in an environment variable.
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

var envReference = regexp.MustCompile(`\$?\$\{[^}]*\}?`)

// expandEnv replaces each ${NAME} by the environment variable NAME, which must
// exist, and $${ by ${.
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

// readConfig returns the settings in the configuration file, if there is one,
// that hold for cmd, by flag. It checks the keys of all commands.
func readConfig(cmd *cobra.Command) (map[string]setting, error) {
	path := cmd.Flag("config").Value.String()
	if path == "" {
		path = os.Getenv(envName("config"))
	}
	if path == "" {
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	top, err := parseYAML(b)
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

// parseYAML returns the mapping that b is, nil if b is empty. Its errors begin
// with the line.
func parseYAML(b []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, yamlError(err)
	}
	top := doc.Content[0]
	if top.ShortTag() == "!!null" {
		return nil, nil
	}
	if top.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%d: want 'key: value' lines", top.Line)
	}
	if err := dec.Decode(&more); err == nil {
		return nil, fmt.Errorf("%d: want one YAML document, not several", more.Line)
	} else if !errors.Is(err, io.EOF) {
		return nil, yamlError(err)
	}
	return top, nil
}

// yamlError is err in the form "line: reason".
func yamlError(err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		return errors.New(rest)
	}
	return errors.New(" " + text)
}

// commandPath is cmd with those above it, the root first.
func commandPath(cmd *cobra.Command) []*cobra.Command {
	path := []*cobra.Command{cmd}
	cmd.VisitParents(func(p *cobra.Command) { path = append(path, p) })
	slices.Reverse(path)
	return path
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
			c.errs = append(c.errs, fmt.Errorf("%s:%d: unknown key %q%s", c.path, s.key.Line, name, didYouMean(name, known)))
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

func resolveAlias(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func subcommand(cmd *cobra.Command, name string) *cobra.Command {
	for _, sub := range cmd.Commands() {
		if sub.Name() == name && takesConfig(sub) {
			return sub
		}
	}
	return nil
}

func subcommandNames(cmd *cobra.Command) (names []string) {
	for _, sub := range cmd.Commands() {
		if takesConfig(sub) {
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
		if configurable(f) && f.Name != "config" {
			names[f.Name] = true
		}
	}
	cmd.InheritedFlags().VisitAll(add)
	forEachCommand(cmd, func(c *cobra.Command) { forEachOwnFlag(c, add) })
	sorted := make([]string, 0, len(names))
	for n := range names {
		sorted = append(sorted, n)
	}
	slices.Sort(sorted)
	return sorted
}

// forEachCommand visits cmd and all below it.
func forEachCommand(cmd *cobra.Command, visit func(*cobra.Command)) {
	visit(cmd)
	for _, sub := range cmd.Commands() {
		forEachCommand(sub, visit)
	}
}

// forEachOwnFlag visits the configurable flags that cmd itself declares.
func forEachOwnFlag(cmd *cobra.Command, visit func(*pflag.Flag)) {
	seen := map[*pflag.Flag]bool{}
	own := func(f *pflag.Flag) {
		if configurable(f) && !seen[f] {
			seen[f] = true
			visit(f)
		}
	}
	cmd.PersistentFlags().VisitAll(own)
	cmd.LocalNonPersistentFlags().VisitAll(own)
}

// kubernetesEnv is what Kubernetes puts into the environment of each container
// for a service whose name begins with pulley.
var kubernetesEnv = regexp.MustCompile(`^PULLEY_(.*_)?(SERVICE_(HOST|PORT)(_.*)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_.*)?)$`)

// warnUnknownEnv logs the environment variables that look like settings and
// are none. They are no errors: other programs may use the prefix.
func warnUnknownEnv(log *slog.Logger, root *cobra.Command) {
	known := []string{envName("config")}
	for _, flag := range flagsUnder(root) {
		known = append(known, envName(flag))
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

// sizeVar declares a flag for a number of bytes, such as 8MiB.
func sizeVar(fs *pflag.FlagSet, p *int64, name string, value int64, usage string) {
	*p = value
	fs.Var((*sizeValue)(p), name, usage)
}

type sizeValue int64

var sizeUnits = []struct {
	suffix string
	bytes  int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
	{"K", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}, {"T", 1 << 40},
	{"B", 1},
}

func (s *sizeValue) Set(text string) error {
	number, unit := strings.TrimSpace(text), int64(1)
	for _, u := range sizeUnits {
		if n, ok := strings.CutSuffix(number, u.suffix); ok {
			number, unit = strings.TrimSpace(n), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/unit {
		return errors.New("want a number of bytes such as 8MiB")
	}
	*s = sizeValue(n * unit)
	return nil
}

func (s *sizeValue) String() string {
	for _, u := range []int{3, 2, 1, 0} { // the binary units, largest first
		if unit := sizeUnits[u]; *s != 0 && int64(*s)%unit.bytes == 0 {
			return strconv.FormatInt(int64(*s)/unit.bytes, 10) + unit.suffix
		}
	}
	return strconv.FormatInt(int64(*s), 10)
}

func (s *sizeValue) Type() string { return "size" }

// defaultStoreDir is where a broker stores unless told otherwise; empty where
// the user has no home.
func defaultStoreDir() string {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "pulley", "broker")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".local", "state", "pulley", "broker")
}

// readSecret is the content of a file that holds a secret, without the newline
// that editors add.
func readSecret(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	secret := strings.TrimRight(string(b), "\r\n")
	if secret == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return secret, nil
}
