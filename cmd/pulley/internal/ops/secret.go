package ops

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
)

// keyPrefix begins every key.
const keyPrefix = "sk-pulley-"

// newKey creates the text of a key with an id, from 256 random bits, and its hash.
func newKey(id string) (text, hash string) {
	var secret [32]byte
	rand.Read(secret[:])
	// The secret may contain '-', so it follows the id, which does not.
	text = keyPrefix + id + "-" + base64.RawURLEncoding.EncodeToString(secret[:])
	sum := sha256.Sum256([]byte(text))
	return text, hex.EncodeToString(sum[:])
}

// newKeyID creates the id of a key, its public part.
func newKeyID() string {
	return strings.ToLower(rand.Text()[:10])
}

// madeKey is a new key, as it is printed once.
type madeKey struct {
	ID     string `json:"id"`
	Tenant string `json:"tenant"`
	Key    string `json:"key"`
}

// printKey prints a new key. Standard output has the key alone, for scripts.
func printKey(s *cli.Session, k policy.Key, text, format string) error {
	made := madeKey{k.ID, k.Tenant, text}
	if format != cli.Text {
		return cli.Show(s.Cmd, cli.View{Value: made}, format)
	}
	fmt.Fprintf(s.Cmd.ErrOrStderr(), "key %s of tenant %s; it is not shown again:\n", k.ID, term.Printable(k.Tenant))
	s.Printf("%s", text)
	return nil
}
