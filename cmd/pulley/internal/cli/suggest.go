package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// synonyms are the verbs of other command lines, each with those of Pulley that do the same. The first one that a noun has
// is suggested.
var synonyms = map[string][]string{
	"add": {"set"}, "new": {"add", "set"}, "create": {"add", "set"}, "edit": {"set"}, "update": {"set"}, "change": {"set"}, "config": {"set"},
	"delete": {"rm"}, "del": {"rm"}, "destroy": {"rm"}, "unset": {"rm"}, "erase": {"rm"},
	"ps": {"ls"}, "get": {"ls"}, "all": {"ls"}, "status": {"ls", "history"},
	"describe": {"info", "show", "export"}, "inspect": {"info", "show", "export"}, "show": {"info", "export"}, "view": {"info", "show", "export"}, "info": {"show", "export"},
	"stop": {"drain", "pause", "cancel"}, "disable": {"cordon", "pause"}, "start": {"resume", "uncordon"}, "enable": {"uncordon", "resume"}, "unpause": {"resume"},
	"kill": {"cancel", "drain", "rm"}, "abort": {"cancel"}, "clear": {"purge", "rm"}, "flush": {"purge"}, "empty": {"purge"},
	"check": {"validate"}, "lint": {"validate", "check"}, "validate": {"check"}, "import": {"apply"}, "undo": {"rollback"}, "log": {"history"}, "logs": {"history"},
	"canary": {"shift"}, "rerun": {"retry"}, "replay": {"retry"},
}

// suggest returns a clause that suggests what may be meant by args, whose first word is no command below cmd; "" if there is
// no idea. Verbs may stand before their noun, as in kubectl.
func suggest(cmd *cobra.Command, args []string) string {
	word := strings.ToLower(args[0])
	meant := ""
	ForEachCommand(cmd, func(sub *cobra.Command) {
		if meant == "" && slices.Contains(sub.SuggestFor, word) {
			meant = fmt.Sprintf("; did you mean '%s'?", sub.CommandPath())
		}
	})
	if meant != "" && len(args) == 1 {
		return meant
	}
	if cmd.HasParent() {
		if verb := verbOf(cmd, word, len(args) > 1); verb != nil {
			return fmt.Sprintf("; did you mean %q?", verb.Name())
		}
		return DidYouMean(word, names(cmd))
	}
	if len(args) > 1 {
		if noun := nounOf(cmd, args[1]); noun != nil {
			if verb := verbOf(noun, word, len(args) > 2); verb != nil {
				return fmt.Sprintf("; did you mean '%s'?", strings.Join(append([]string{verb.CommandPath()}, args[2:]...), " "))
			}
		}
	}
	if noun := nounOf(cmd, word); noun != nil {
		return fmt.Sprintf("; did you mean '%s'?", strings.Join(append([]string{noun.CommandPath()}, args[1:]...), " "))
	}
	if meant != "" {
		return meant
	}
	return DidYouMean(word, names(cmd))
}

// verbOf returns the verb of a noun that a word stands for; nil if there is none. What is said to get of an object by its
// name is its description.
func verbOf(noun *cobra.Command, word string, named bool) *cobra.Command {
	verbs := append([]string{word}, synonyms[word]...)
	if word == "get" && named {
		verbs = synonyms["describe"]
	}
	for _, name := range verbs {
		for _, verb := range noun.Commands() {
			if verb.Name() == name || verb.HasAlias(name) {
				return verb
			}
		}
	}
	return nil
}

// nounOf returns the noun that a word names in the plural; nil if there is none.
func nounOf(root *cobra.Command, word string) *cobra.Command {
	for _, noun := range root.Commands() {
		if noun.HasSubCommands() && (noun.Name() == word || noun.Name()+"s" == word || strings.TrimSuffix(noun.Name(), "y")+"ies" == word) {
			return noun
		}
	}
	return nil
}

func names(cmd *cobra.Command) (list []string) {
	for _, sub := range cmd.Commands() {
		list = append(list, sub.Name())
	}
	return list
}
