package ops

import (
	"strings"
	"testing"
)

func TestDeadLetters(t *testing.T) {
	s := newSite(t)
	s.story(step{"dead ls", 0, "no dead letters\n"}, step{"dead rm --all --force", 0, "no dead letters\n"}, step{"dead retry 1", 3, "pulley: no gateway on this broker.*"})
	s.answer()
	s.die("standard", "org/llama:7b", "tell me of dragons")
	s.die("batch", "qwen", "two")
	s.die("batch", "qwen", "three")
	s.story(
		step{"dead ls", 0, `SEQ   AGE  POOL          TIER      MODEL  TENANT  REASON
  1  \S+s  org/llama:7b  standard  chat   acme    crashed \\x1b\[2J worker gpu-1 twice
  2 .* qwen .* batch .*
  3 .*\n`},
		step{"dead ls --pool qwen -n 1", 0, `SEQ.*\n  3 .*\nthe latest 1 of 2; -n 0 shows all\n`},
		step{"dead ls --tier standard --pool org/llama:7b", 0, `SEQ.*\n  1 [^\n]*\n`},
		step{"dead show 1", 0, `dead letter  1\nreason +crashed \\x1b\[2J worker gpu-1 twice\n.*pool +org/llama:7b\n.*path +POST /v1/chat/completions\n.*headers\n.*X-Api-Key +\(hidden\)\n`},
		step{"dead show 1 --show-body", 0, `.*\ntell me of dragons\n\n`},
		step{"dead show 9", 3, `pulley: no dead letter 9; see 'pulley dead ls'\n`},
		step{"dead show one", 2, `pulley: "one": not the sequence number of a dead letter .*`},
		step{"dead retry 1", 0, `1  200  answered, removed\n`},
		step{"dead retry 1 --show-body", 0, `1  200  answered, removed\n\nthe answer\n\n`},
		step{"dead retry --pool qwen", 1, `(2  500  kept\n|3  200  answered, removed\n){2}pulley: 1 of 2 failed again\n`},
		step{"dead retry 1 2", 1, `.*pulley: 1 of 2 failed again\n`},
		step{"dead retry 1 8", 3, `.*pulley: no dead letter 8; see 'pulley dead ls'\n`},
		step{"dead retry", 2, `pulley: missing argument: SEQ, --pool or --all \(see 'pulley dead ls'\)\nrun .*`},
		step{"dead retry 1 --all", 2, `pulley: SEQ, --pool and --all exclude each other\nrun .*`},
		step{"dead rm 2", 4, `pulley: permanently remove 1 dead letter: needs a confirmation, and standard input is not a terminal; use --force to skip it\n`},
		step{"dead rm 2 --force", 0, `1 dead letter removed\n`},
		step{"dead rm 2 3 --force", 3, `pulley: no dead letter 2; see 'pulley dead ls'\n`},
		step{"dead rm --all --force", 0, `2 dead letters removed\n`},
		step{"dead ls", 0, "no dead letters\n"},
	)
	s.die("batch", "qwen", "dragons")
	for _, args := range []string{"dead ls -o json", "dead show 4 -o yaml"} {
		if out := s.ok(args); strings.Contains(out, "dragons") || strings.Contains(out, "sk-secret") {
			t.Errorf("%s shows too much:\n%s", args, out)
		}
	}
}
