package spelling

import "testing"

func TestHint(t *testing.T) {
	known := []string{"release", "args", "module_layout"}
	for got, want := range map[string]string{
		"relaese":       `; did you mean "release"?`,
		"ARGS":          `; did you mean "args"?`,
		"arg":           `; did you mean "args"?`,
		"modulelayout":  `; did you mean "module_layout"?`,
		"something":     "; known: args, module_layout, release",
		"":              "; known: args, module_layout, release",
		"módule_layout": `; did you mean "module_layout"?`,
	} {
		if hint := Hint(got, known); hint != want {
			t.Errorf("Hint(%q) = %q, want %q", got, hint, want)
		}
	}
	if hint := Hint("x", nil); hint != "" {
		t.Errorf("Hint without known words = %q", hint)
	}
}
