package background

import (
	"bytes"

	"github.com/go-json-experiment/json/jsontext"
)

// member is a member of a JSON object. Without a value it is left out.
type member struct {
	name  string
	value jsontext.Value
}

func text(s string) jsontext.Value {
	b, err := jsontext.AppendQuote(nil, s)
	if err != nil {
		b, _ = jsontext.AppendQuote(nil, string(bytes.ToValidUTF8([]byte(s), []byte("\ufffd"))))
	}
	return b
}

// members calls see with the members of a JSON object, in order. A value is valid until see returns.
func members(object []byte, see func(name string, value jsontext.Value)) error {
	d := jsontext.NewDecoder(bytes.NewBuffer(object), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if t, err := d.ReadToken(); err != nil || t.Kind() != '{' {
		return errNoObject
	}
	for d.PeekKind() != '}' {
		name, err := d.ReadToken()
		if err != nil {
			return err
		}
		n := name.String()
		value, err := d.ReadValue()
		if err != nil {
			return err
		}
		see(n, value)
	}
	return nil
}

// get is the value of a member; nil if there is none.
func get(object []byte, name string) (found jsontext.Value) {
	members(object, func(n string, v jsontext.Value) {
		if n == name {
			found = v.Clone()
		}
	})
	return found
}

// getText is the value of a member that is a string; else "".
func getText(object []byte, name string) string {
	v := get(object, name)
	if v.Kind() != '"' {
		return ""
	}
	b, _ := jsontext.AppendUnquote(nil, v)
	return string(b)
}

// with returns a JSON object with some members replaced, added or left out. The others are as they were, in their order.
func with(object []byte, changes ...member) ([]byte, error) {
	out := append(make([]byte, 0, len(object)+64), '{')
	done := make([]bool, len(changes))
	add := func(name string, value jsontext.Value) {
		if value == nil {
			return
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(append(out, text(name)...), ':'), value...)
	}
	err := members(object, func(name string, value jsontext.Value) {
		for i, c := range changes {
			if c.name == name {
				if !done[i] {
					add(name, c.value)
				}
				done[i] = true
				return
			}
		}
		add(name, value)
	})
	if err != nil {
		return nil, err
	}
	for i, c := range changes {
		if !done[i] {
			add(c.name, c.value)
		}
	}
	return append(out, '}'), nil
}
