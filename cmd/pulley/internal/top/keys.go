package top

// press handles a key. It returns true when the user quits.
func (m *screen) press(key, text string) (quit bool) {
	if key == "ctrl+c" {
		return true
	}
	if m.typing {
		m.typeFilter(key, text)
		return false
	}
	st := &m.states[m.pane]
	switch key {
	case "q":
		return true
	case "tab", "right", "l":
		m.open((m.pane + 1) % len(panes))
	case "shift+tab", "left", "h":
		m.open((m.pane + len(panes) - 1) % len(panes))
	case "1", "2", "3", "4":
		m.open(int(key[0] - '1'))
	case "up", "k":
		m.move(-1)
	case "down", "j":
		m.move(1)
	case "pgup":
		m.move(-m.rowHeight())
	case "pgdown":
		m.move(m.rowHeight())
	case "home", "g":
		m.move(-1 << 30)
	case "end", "G":
		m.move(1 << 30)
	case "s":
		st.sorting = sorting{column: (st.column + 1) % len(panes[m.pane].columns)}
	case "S":
		st.reverse = !st.reverse
	case "/":
		m.typing, m.overlay = true, noOverlay
	case "p", "space":
		if m.frozen != nil {
			m.frozen = nil
		} else {
			s := m.latest
			m.frozen = &s
		}
	case "enter":
		if rows, i := m.rows(); m.overlay == noOverlay && len(rows) > 0 {
			m.overlay, m.detailOf, m.scroll = detailOverlay, rows[i].key, 0
		}
	case "?":
		m.toggle(helpOverlay)
	case "!":
		m.toggle(findingsOverlay)
	case "esc":
		if m.overlay == noOverlay {
			m.filter = ""
		}
		m.overlay = noOverlay
	}
	return false
}

// typeFilter handles a key while the user types the filter.
func (m *screen) typeFilter(key, text string) {
	switch key {
	case "enter":
		m.typing = false
	case "esc":
		m.typing, m.filter = false, ""
	case "backspace":
		if r := []rune(m.filter); len(r) > 0 {
			m.filter = string(r[:len(r)-1])
		}
	case "ctrl+u":
		m.filter = ""
	default:
		m.filter += text
	}
}

// open shows a pane.
func (m *screen) open(pane int) { m.pane, m.overlay = pane, noOverlay }

// toggle shows an overlay, or closes it if it is shown.
func (m *screen) toggle(o overlay) {
	if m.overlay == o {
		o = noOverlay
	}
	m.overlay, m.scroll = o, 0
}

// move selects another row, or scrolls the overlay.
func (m *screen) move(by int) {
	if m.overlay != noOverlay {
		m.scroll = max(0, min(m.scroll+by, len(m.overlayLines())-m.rowHeight()))
		return
	}
	rows, i := m.rows()
	if len(rows) == 0 {
		return
	}
	i = max(0, min(i+by, len(rows)-1))
	m.states[m.pane].selected, m.states[m.pane].at = rows[i].key, i
}
