"""Control: steer, search, edit, restore and weigh what a flow map draws, for any map and any reward."""
