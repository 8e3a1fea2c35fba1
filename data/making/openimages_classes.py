"""What OpenImages and COCO call the same things, so that a model of the one's boxes can go on with the other's."""

# COCO's name of each of its 80 things -> OpenImages' name.
COCO = {
    name.lower(): name
    for name in (
        "Person", "Bicycle", "Car", "Motorcycle", "Airplane", "Bus", "Train", "Truck", "Boat", "Traffic light",
        "Fire hydrant", "Stop sign", "Parking meter", "Bench", "Bird", "Cat", "Dog", "Horse", "Sheep", "Elephant",
        "Bear", "Zebra", "Giraffe", "Backpack", "Umbrella", "Handbag", "Tie", "Suitcase", "Snowboard", "Kite",
        "Baseball bat", "Baseball glove", "Skateboard", "Surfboard", "Tennis racket", "Bottle", "Wine glass", "Fork",
        "Knife", "Spoon", "Bowl", "Banana", "Apple", "Sandwich", "Orange", "Broccoli", "Carrot", "Hot dog", "Pizza",
        "Cake", "Chair", "Couch", "Bed", "Toilet", "Laptop", "Oven", "Toaster", "Sink", "Refrigerator", "Book",
        "Clock", "Vase", "Scissors", "Teddy bear", "Toothbrush",
    )
} | {
    "cow": "Cattle",
    "frisbee": "Flying disc",
    "skis": "Ski",
    "sports ball": "Ball",
    "cup": "Coffee cup",
    "donut": "Doughnut",
    "potted plant": "Houseplant",
    "dining table": "Kitchen & dining room table",
    "tv": "Television",
    "mouse": "Computer mouse",
    "remote": "Remote control",
    "keyboard": "Computer keyboard",
    "cell phone": "Mobile phone",
    "microwave": "Microwave oven",
    "hair drier": "Hair dryer",
}  # fmt: skip

# Classes that COCO has no name of its own for -> the class that its name stands for.
FOLDED = {
    "Man": "Person",
    "Woman": "Person",
    "Boy": "Person",
    "Girl": "Person",
    "Bull": "Cattle",
    "Football": "Ball",
    "Tennis ball": "Ball",
    "Kitchen knife": "Knife",
    "Submarine sandwich": "Sandwich",
    "Sofa bed": "Couch",
    "Alarm clock": "Clock",
    "Wall clock": "Clock",
}
