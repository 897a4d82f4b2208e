package subjects_test

import (
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

func TestParseAck(t *testing.T) {
	want := subjects.Delivery{Stream: "S", Consumer: "c", Delivered: 2, StreamSeq: 30, ConsumerSeq: 4, Pending: 7}
	for about, subject := range map[string]string{
		"short form":                     "$JS.ACK.S.c.2.30.4.1700000000000000000.7",
		"long form":                      "$JS.ACK.dom.acchash.S.c.2.30.4.1700000000000000000.7.rnd",
		"long form, no domain":           "$JS.ACK._.acchash.S.c.2.30.4.1700000000000000000.7.rnd",
		"long form, no random part":      "$JS.ACK._.acchash.S.c.2.30.4.1700000000000000000.7",
		"long form with later additions": "$JS.ACK._.acchash.S.c.2.30.4.1700000000000000000.7.rnd.new.newer",
		"the time is not parsed":         "$JS.ACK.S.c.2.30.4.x.7",
	} {
		if got, err := subjects.ParseAck(subject); err != nil || got != want {
			t.Errorf("%s: ParseAck(%q) = %+v, %v, want %+v", about, subject, got, err, want)
		}
	}
	for about, subject := range map[string]string{
		"nothing":            "",
		"an inbox":           "_INBOX.abc",
		"too short":          "$JS.ACK.S.c.2.30.4.7",
		"between the forms":  "$JS.ACK.x.S.c.2.30.4.1.7",
		"another API":        "$JS.API.S.c.2.30.4.1.7",
		"not a number":       "$JS.ACK.S.c.two.30.4.1.7",
		"a negative number":  "$JS.ACK.S.c.-2.30.4.1.7",
		"a number too large": "$JS.ACK.S.c.2.30.4.1.18446744073709551616",
		"no stream":          "$JS.ACK..c.2.30.4.1.7",
		"no consumer":        "$JS.ACK._.h.S..2.30.4.1.7.r",
	} {
		if got, err := subjects.ParseAck(subject); err == nil {
			t.Errorf("%s: ParseAck(%q) = %+v, want an error", about, subject, got)
		}
	}
}

func TestAckSubjectReadsBack(t *testing.T) {
	s := subjects.AckSubject("S", "c", 30, 4)
	if d, err := subjects.ParseAck(s); err != nil || d.Stream != "S" || d.Consumer != "c" || d.StreamSeq != 30 || d.ConsumerSeq != 4 {
		t.Errorf("ParseAck(%q) = %+v, %v", s, d, err)
	}
}

func FuzzParseAck(f *testing.F) {
	f.Add("$JS.ACK.S.c.2.30.4.1700000000000000000.7")
	f.Add("$JS.ACK._.acchash.S.c.2.30.4.1700000000000000000.7.rnd")
	f.Add("$JS.ACK.........")
	f.Add("")
	f.Fuzz(func(t *testing.T, subject string) {
		d, err := subjects.ParseAck(subject)
		if err != nil {
			return
		}
		if d.Stream == "" || d.Consumer == "" || strings.Contains(d.Stream+d.Consumer, ".") {
			t.Errorf("ParseAck(%q) = %+v", subject, d)
		}
		again, err := subjects.ParseAck(subjects.AckSubject(d.Stream, d.Consumer, d.StreamSeq, d.ConsumerSeq))
		if err != nil || again.StreamSeq != d.StreamSeq || again.Stream != d.Stream || again.Consumer != d.Consumer {
			t.Errorf("%q: its ack subject reads %+v, %v", subject, again, err)
		}
	})
}

func TestNakAfter(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "-NAK", 0: "-NAK", 100 * time.Millisecond: `-NAK {"delay":100000000}`,
	} {
		if got := string(subjects.NakAfter(d)); got != want {
			t.Errorf("NakAfter(%v) = %q, want %q", d, got, want)
		}
	}
}
