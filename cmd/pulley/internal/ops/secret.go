package ops

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
)

const keyPrefix = "sk-pulley-"

// newKey makes the text of a key with an id, from 256 random bits, and its hash.
func newKey(id string) (text, hash string) {
	var secret [32]byte
	rand.Read(secret[:])
	// Its alphabet has '-', which the id before it has not.
	text = keyPrefix + id + "-" + base64.RawURLEncoding.EncodeToString(secret[:])
	sum := sha256.Sum256([]byte(text))
	return text, hex.EncodeToString(sum[:])
}

// newKeyID makes a key's public part.
func newKeyID() string {
	return strings.ToLower(rand.Text()[:10])
}

// made is a key that is shown the one time.
type madeKey struct {
	ID     string `json:"id"`
	Tenant string `json:"tenant"`
	Key    string `json:"key"`
}

// printKey prints a key: on standard output nothing else, for scripts.
func printKey(s *cli.Session, k policy.Key, text, format string) error {
	made := madeKey{k.ID, k.Tenant, text}
	if format == "json" || format == "yaml" {
		b, err := cli.View{Value: made}.Render(format, term.Terminal{})
		if err == nil {
			_, err = s.Cmd.OutOrStdout().Write(b)
		}
		return err
	}
	fmt.Fprintf(s.Cmd.ErrOrStderr(), "key %s of tenant %s; it is not shown again:\n", k.ID, term.Printable(k.Tenant))
	s.Printf("%s", text)
	return nil
}

func addKeyOutput(cmd *cobra.Command) *string {
	output := cmd.Flags().StringP("output", "o", "text", "how to print the key: text, json or yaml")
	cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	return output
}

func checkKeyOutput(format string) error {
	if !slices.Contains([]string{"text", "json", "yaml"}, format) {
		return cli.Usagef("--output %q: want text, json or yaml", format)
	}
	return nil
}
