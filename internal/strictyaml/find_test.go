package strictyaml

import "testing"

func TestFind(t *testing.T) {
	const doc = "# comment\na:\n  b: 1\n  list:\n    - x: 1\n    - {x: 2, y: 3}\n"
	for key, want := range map[string][2]int{
		"a.b":         {3, 6},
		"a.list[1].y": {6, 17},
		"a.list[7].y": {5, 5},
		"a.none":      {3, 3},
		"none":        {2, 1},
	} {
		if line, column := Find([]byte(doc), key); line != want[0] || column != want[1] {
			t.Errorf("%s is at %d:%d, want %d:%d", key, line, column, want[0], want[1])
		}
	}
}
