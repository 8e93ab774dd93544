package idempotency

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"sync"
)

var (
	jsonMarshaler = reflect.TypeFor[json.Marshaler]()
	textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()
)

// checkedResults remembers which types were found fit: at most as many as the program
// has calls of [Step].
var checkedResults sync.Map // of reflect.Type

// checkResult reports what makes a type unfit to be a step's result. To find that out
// only when a value of it cannot be marshalled would be after the effect.
func checkResult(t reflect.Type) error {
	if _, ok := checkedResults.Load(t); ok {
		return nil
	}
	if unfit := unfitForJSON(t, make(map[reflect.Type]bool)); unfit != nil {
		return fmt.Errorf("%w: JSON cannot carry its result of type %s, because of %s", ErrStepInvalid, t, unfit)
	}
	checkedResults.Store(t, true)
	return nil
}

// unfitForJSON returns a type in t that encoding/json refuses to write, or cannot read
// back; nil if there is none.
func unfitForJSON(t reflect.Type, seen map[reflect.Type]bool) reflect.Type {
	if seen[t] || isMarshaler(t) {
		return nil
	}
	seen[t] = true
	switch t.Kind() {
	case reflect.Chan, reflect.Func, reflect.Complex64, reflect.Complex128, reflect.UnsafePointer:
		return t
	case reflect.Interface:
		if t.NumMethod() > 0 { // whose values no JSON tells the type of
			return t
		}
	case reflect.Map:
		if !isMapKey(t.Key()) {
			return t
		}
		return unfitForJSON(t.Elem(), seen)
	case reflect.Pointer, reflect.Slice, reflect.Array:
		return unfitForJSON(t.Elem(), seen)
	case reflect.Struct:
		for i := range t.NumField() {
			f := t.Field(i)
			if f.Tag.Get("json") == "-" || !f.IsExported() && !f.Anonymous {
				continue
			}
			if unfit := unfitForJSON(f.Type, seen); unfit != nil {
				return unfit
			}
		}
	}
	return nil
}

func isMarshaler(t reflect.Type) bool {
	return t.Implements(jsonMarshaler) || t.Implements(textMarshaler) ||
		reflect.PointerTo(t).Implements(jsonMarshaler) || reflect.PointerTo(t).Implements(textMarshaler)
}

func isMapKey(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.String, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return true
	}
	return t.Implements(textMarshaler)
}
